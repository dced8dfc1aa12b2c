"""The same model in each runtime's format, in a cache folder; and the weights each reads per token."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx_ir as ir
from random_checkpoint import write_gguf, write_hugging_face
from safetensors import safe_open

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


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint in a Hugging Face folder; name: of the files that are made of it."""

    name: str
    folder: Path
    is_random: bool = False


def megrez_shape(cache: Path, layers: int) -> Source:
    """Random weights."""
    cache.mkdir(parents=True, exist_ok=True)
    return Source(
        str(layers), made(cache / f"hf-{layers}", lambda part: write_hugging_face(part, layers)), is_random=True
    )


def vocab_size(source: Source) -> int:
    found: int = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return found


def megrez_bundle(cache: Path, layers: int, options: tuple[object, ...]) -> Path:
    return bundle(cache, megrez_shape(cache, layers), "cpu-int4", options)


def bundle(cache: Path, source: Source, target: str, options: tuple[object, ...], *, reuse: bool = False) -> Path:
    """Compiled each time unless `reuse`: a cached one may be outdated. By RTN: speed does not depend on calibration."""
    path = cache / "-".join(["megrez", target.removeprefix("cpu-"), source.name, *map(str, options)])
    if not reuse:
        shutil.rmtree(path, ignore_errors=True)
    compiler = Path(sys.executable).with_name("megrez-compile")
    command = compiler, source.folder, "--target", target, "--algorithm", "rtn", "--context", CONTEXT, *options
    return made(path, lambda part: run(*command, "--fidelity-tokens", 0, "-o", part))


def genai_folder(cache: Path, source: Source, python: Path, device: str = "cpu") -> Path:
    """Built with the defaults of onnxruntime-genai's builder, which needs 10 GB of memory for 8 layers."""
    builder = python, "-m", "onnxruntime_genai.models.builder"
    options = "-p", "int4", "-e", device, "-c", cache / "genai-cache"
    name = f"genai-int4-{source.name}" if device == "cpu" else f"genai-{device}-int4-{source.name}"
    return made(cache / name, lambda part: run(*builder, "-i", source.folder, "-o", part, *options))


def _full_gguf(cache: Path, source: Source) -> Path:
    return made(cache / f"full-{source.name}.gguf", lambda part: write_gguf(source.folder, part))


def ik_llama_file(cache: Path, source: Source, python: Path) -> Path:
    """Q4_0 by ik_llama.cpp's quantiser, which chooses another type for lm_head."""
    full = _full_gguf(cache, source)
    return made(
        cache / f"ik-llama-q4_0-{source.name}.gguf",
        lambda part: run(python, "-m", "ik_llama_cpp.quantize", "quantize", full, part, "Q4_0"),
    )


def llama_cpp_file(cache: Path, source: Source, python: Path) -> Path:
    """Q4_0 by llama.cpp's."""
    full, script = _full_gguf(cache, source), Path(__file__).parent / "peers" / "run_llama_cpp.py"
    return made(
        cache / f"llama-q4_0-{source.name}.gguf",
        lambda part: run(python, script, "--quantize", full, part),
    )


def any_gguf(cache: Path, source: Source) -> Path | None:
    """A Q4_0 file that one of the two has made, llama.cpp's first."""
    names = (f"llama-q4_0-{source.name}.gguf", f"ik-llama-q4_0-{source.name}.gguf")
    return next((cache / name for name in names if (cache / name).exists()), None)


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
    """All but the embedding's table, unless it is the LM head too."""
    tensors = gguf.GGUFReader(file).tensors
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    return sum(int(tensor.n_bytes) for tensor in tensors if not untied or tensor.name != "token_embd.weight")


def gguf_head_type(file: Path) -> str:
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    return types.get("output.weight") or types["token_embd.weight"]


def checkpoint_bytes_per_token(folder: Path, bytes_per_weight: int) -> int:
    """All but the embedding's table, unless it is the LM head too."""
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        names = set(tensors.keys())
        read = names if "lm_head.weight" not in names else names - {"model.embed_tokens.weight"}
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in read) * bytes_per_weight
