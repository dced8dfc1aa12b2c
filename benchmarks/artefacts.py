"""The same random model as each runtime wants it, made once into a cache folder; and what each reads per token."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import onnx_ir as ir
from random_checkpoint import write_gguf, write_hugging_face

CONTEXT = 1024


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made under another name first: what a killed run leaves is not taken for a whole one."""
    if not path.exists():
        print(f"making {path.name}", file=sys.stderr, flush=True)
        part = path.with_name(f"part-{path.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        make(part)
        part.rename(path)
    return path


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}")


def checkpoint(cache: Path, layers: int) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    return made(cache / f"hf-{layers}", lambda part: write_hugging_face(part, layers))


def megrez_bundle(cache: Path, layers: int, options: tuple[object, ...]) -> Path:
    """Compiled anew each time: one in the cache could be an older compiler's. Random weights gain by no calibration."""
    source = checkpoint(cache, layers)
    bundle = cache / "-".join(["megrez-int4", str(layers), *map(str, options)])
    shutil.rmtree(bundle, ignore_errors=True)
    compiler = Path(sys.executable).with_name("megrez-compile")
    command = compiler, source, "--target", "cpu-int4", "--algorithm", "rtn", "--context", CONTEXT, *options
    return made(bundle, lambda part: run(*command, "-o", part))


def genai_folder(cache: Path, layers: int, python: Path) -> Path:
    """As onnxruntime-genai's own builder makes it by default; it needs 10 GB of memory for 8 layers."""
    source = checkpoint(cache, layers)
    builder = python, "-m", "onnxruntime_genai.models.builder"
    options = "-p", "int4", "-e", "cpu", "-c", cache / "genai-cache"
    return made(cache / f"genai-int4-{layers}", lambda part: run(*builder, "-i", source, "-o", part, *options))


def ik_llama_file(cache: Path, layers: int, python: Path) -> Path:
    """As ik_llama.cpp's own quantiser makes Q4_0, which chooses another type for lm_head."""
    source = checkpoint(cache, layers)
    full = made(cache / f"f16-{layers}.gguf", lambda part: write_gguf(source, part))
    return made(
        cache / f"ik-q4_0-{layers}.gguf",
        lambda part: run(python, "-m", "ik_llama_cpp.quantize", "quantize", full, part, "Q4_0"),
    )


def onnx_bytes_per_token(folder: Path) -> int:
    """What the products of an ONNX graph read: of the embedding table a token needs one row, which is nothing."""
    model = ir.load(folder / "model.onnx")
    read = {
        value.name: value.const_value.nbytes
        for node in model.graph
        if node.op_type in ("MatMul", "MatMulNBits", "Gemm")
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    return sum(read.values())


def gguf_bytes_per_token(file: Path) -> int:
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors if tensor.name != "token_embd.weight")


def gguf_head_type(file: Path) -> str:
    return next(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors if tensor.name == "output.weight")
