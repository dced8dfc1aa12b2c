"""The same model in each runtime's format, in a cache folder; and the weights each reads per token."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import gguf
import numpy as np
import onnx_ir as ir
from random_checkpoint import write_gguf, write_hugging_face, write_of_config
from safetensors import safe_open

from megrez.compile.graph.passes.decoder_layer import ATTENTION_INPUTS

CONTEXT = 2048
# What the peers call weights of 4 and of 8 bits.
GGUF_TYPES = {4: "Q4_0", 8: "Q8_0"}


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
    """A checkpoint, a Hugging Face folder or a GGUF file; name: of the files that are made of it."""

    name: str
    path: Path
    is_random: bool = False

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def megrez_shape(cache: Path, layers: int) -> Source:
    """Random weights."""
    cache.mkdir(parents=True, exist_ok=True)
    return Source(
        str(layers), made(cache / f"hf-{layers}", lambda part: write_hugging_face(part, layers)), is_random=True
    )


def random_weights(cache: Path, config: Path) -> Source:
    """Of a config.json."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = made(cache / f"hf-{config.stem}", lambda part: write_of_config(part, config))
    return Source(config.stem, folder, is_random=True)


def vocab_size(source: Source) -> int:
    if source.is_gguf:
        return len(gguf.GGUFReader(source.path).fields["tokenizer.ggml.tokens"].data)
    found: int = json.loads((source.path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return found


def megrez_bundle(cache: Path, layers: int, options: tuple[object, ...]) -> Path:
    return bundle(cache, megrez_shape(cache, layers), "cpu-int4", options)


def bundle(cache: Path, source: Source, target: str, options: tuple[object, ...], *, reuse: bool = False) -> Path:
    """Compiled each time unless `reuse`: a cached one may be outdated. By RTN: speed does not depend on calibration."""
    path = cache / "-".join(["megrez", target.removeprefix("cpu-"), source.name, *map(str, options)])
    if not reuse:
        shutil.rmtree(path, ignore_errors=True)
    compiler = Path(sys.executable).with_name("megrez-compile")
    command = compiler, source.path, "--target", target, "--algorithm", "rtn", "--context", CONTEXT, *options
    return made(path, lambda part: run(*command, "--fidelity-tokens", 0, "-o", part))


def genai_folder(cache: Path, source: Source, python: Path, device: str = "cpu", bits: int = 4) -> Path:
    """Built with the defaults of onnxruntime-genai's builder, which needs 10 GB of memory for 8 layers."""
    builder = python, "-m", "onnxruntime_genai.models.builder"
    options = "-p", f"int{bits}", "-e", device, "-c", cache / "genai-cache"
    name = f"genai-int{bits}-{source.name}" if device == "cpu" else f"genai-{device}-int{bits}-{source.name}"
    return made(cache / name, lambda part: run(*builder, "-i", source.path, "-o", part, *options))


def openvino_folder(cache: Path, source: Source, python: Path, bits: int = 4) -> Path:
    """Exported by optimum-intel with its defaults, 4 bits in groups of 128, or of 64 where 128 do not divide a row."""
    command = python, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--task", "text-generation-with-past"
    config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    group = 64 if config["hidden_size"] % 128 or config["intermediate_size"] % 128 else 128
    options = ("--weight-format", "int4", "--group-size", group) if bits == 4 else ("--weight-format", "int8")
    return made(
        cache / f"openvino-int{bits}-{source.name}",
        lambda part: run(*command, "--model", source.path, *options, part),
    )


def _full_gguf(cache: Path, source: Source) -> Path:
    return made(cache / f"full-{source.name}.gguf", lambda part: write_gguf(source.path, part))


def ik_llama_file(cache: Path, source: Source, python: Path, bits: int = 4) -> Path:
    """The GGUF file itself, or Q4_0 or Q8_0 by ik_llama.cpp's quantiser, which may choose another type for lm_head."""
    return _quantized_gguf(cache, source, bits, "ik-llama", python, "-m", "ik_llama_cpp.quantize", "quantize")


def llama_cpp_file(cache: Path, source: Source, python: Path, bits: int = 4) -> Path:
    """The same by llama.cpp's."""
    script = Path(__file__).parent / "peers" / "run_llama_cpp.py"
    return _quantized_gguf(cache, source, bits, "llama", python, script, "--quantize")


def _quantized_gguf(cache: Path, source: Source, bits: int, quantiser: str, *command: object) -> Path:
    """command: the quantiser's, which is followed by a file, that which it makes, and the latter's type."""
    if source.is_gguf:
        return source.path
    full, kind = _full_gguf(cache, source), GGUF_TYPES[bits]
    path = cache / f"{quantiser}-{kind.lower()}-{source.name}.gguf"
    return made(path, lambda part: run(*command, full, part, kind))


def onnx_bytes_per_token(folder: Path) -> int:
    """Bytes of the weights of an ONNX graph's matrix products; one row of the embedding is negligible."""
    model = ir.load(folder / "model.onnx")
    read = {
        value.name: value.const_value.nbytes
        for node in model.graph
        for value in node.inputs[_first_weight(node) :]
        if value is not None and value.const_value is not None
    }
    return sum(read.values())


def _first_weight(node: ir.Node) -> int:
    """The first input that is read for each token; behind the last where none is."""
    if node.op_type.startswith("DecoderLayer"):
        return len(ATTENTION_INPUTS)
    is_product = node.op_type in ("MatMul", "Gemm") or node.op_type.endswith("MatMulNBits")
    return 0 if is_product else len(node.inputs)


def gguf_bytes_per_token(file: Path) -> int:
    """All but the embedding's table, unless it is the LM head too."""
    tensors = gguf.GGUFReader(file).tensors
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    return sum(int(tensor.n_bytes) for tensor in tensors if not untied or tensor.name != "token_embd.weight")


def gguf_types(file: Path) -> str:
    """The commonest type of the matrices, and that of the LM head."""
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    commonest = Counter(kind for name, kind in types.items() if name.startswith("blk.") and kind != "F32")
    return f"{commonest.most_common(1)[0][0]}, lm_head {types.get('output.weight') or types['token_embd.weight']}"


def openvino_bytes_per_token(folder: Path) -> int:
    """Of the constants: all but the embedding's table, unless it is the LM head too."""
    layers = [
        one for one in ElementTree.parse(folder / "openvino_model.xml").iter("layer") if one.get("type") == "Const"
    ]
    untied = any("lm_head" in one.get("name", "") for one in layers)
    read = [one for one in layers if not untied or "embed_tokens" not in one.get("name", "")]
    return sum(int(data.get("size", 0)) for one in read if (data := one.find("data")) is not None)


def checkpoint_bytes_per_token(folder: Path, bytes_per_weight: int) -> int:
    """All but the embedding's table, unless it is the LM head too."""
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        names = set(tensors.keys())
        read = names if "lm_head.weight" not in names else names - {"model.embed_tokens.weight"}
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in read) * bytes_per_weight
