"""The same random model in each runtime's format, in a cache folder; and the weights each reads per token."""

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
    """`path`, written under another name first, so that an interrupted run leaves no incomplete file."""
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
    """Compiled each time: a cached one may be outdated. By RTN: random weights gain nothing from calibration."""
    source = checkpoint(cache, layers)
    bundle = cache / "-".join(["megrez-int4", str(layers), *map(str, options)])
    shutil.rmtree(bundle, ignore_errors=True)
    compiler = Path(sys.executable).with_name("megrez-compile")
    command = compiler, source, "--target", "cpu-int4", "--algorithm", "rtn", "--context", CONTEXT, *options
    return made(bundle, lambda part: run(*command, "-o", part))


def genai_folder(cache: Path, layers: int, python: Path) -> Path:
    """Built with the defaults of onnxruntime-genai's builder, which needs 10 GB of memory for 8 layers."""
    source = checkpoint(cache, layers)
    builder = python, "-m", "onnxruntime_genai.models.builder"
    options = "-p", "int4", "-e", "cpu", "-c", cache / "genai-cache"
    return made(cache / f"genai-int4-{layers}", lambda part: run(*builder, "-i", source, "-o", part, *options))


def ik_llama_file(cache: Path, layers: int, python: Path) -> Path:
    """Q4_0 by ik_llama.cpp's quantiser, which chooses another type for lm_head."""
    source = checkpoint(cache, layers)
    full = made(cache / f"f16-{layers}.gguf", lambda part: write_gguf(source, part))
    return made(
        cache / f"ik-q4_0-{layers}.gguf",
        lambda part: run(python, "-m", "ik_llama_cpp.quantize", "quantize", full, part, "Q4_0"),
    )


def onnx_bytes_per_token(folder: Path) -> int:
    """Bytes of the weights of an ONNX graph's matrix products; one row of the embedding is negligible."""
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
