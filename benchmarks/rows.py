"""The commands of a comparison: a row for each runtime and setting, with the model in the runtime's format."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import artefacts
from artefacts import Source
from onnxruntime import SessionOptions
from peers.runtimes import Peer, UnavailableError, environment_of, find_peers

from megrez.engines.ort import custom_ops

PEERS = Path(__file__).parent / "peers"
TARGETS = {("cpu", 4): "cpu-int4", ("cpu", 8): "cpu-int8", ("cuda", 4): "cuda-int4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Of every runtime; tokens are per stream. bits: of the weights. variants: rows of other settings too."""

    device: str
    bits: int
    threads: int
    prompt_tokens: int
    output_tokens: int
    streams: int
    variants: bool = True

    @property
    def target(self) -> str:
        return TARGETS[self.device, self.bits]

    @property
    def settings(self) -> dict[str, object]:
        """What a report states."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "variants"}


@dataclass(frozen=True, slots=True)
class Row:
    """The command that starts a runtime, and the bytes of weights that it reads per token, of all streams together."""

    command: list[object]
    bytes_per_token: int
    on_cpu: bool = True


def our_rows(cache: Path, source: Source, work: Workload, *, reuse: bool) -> dict[str, Row]:
    """The first one is what others are compared with."""
    streams, rows, on_cpu = work.streams, dict[str, Row](), work.device == "cpu"
    blocks = source.is_random and on_cpu and work.variants and work.bits == 4
    options: tuple[object, ...]
    for options in ((), ("--block-size", 128)) if blocks else ((),):
        bundle = artefacts.bundle(cache, source, work.target, options, reuse=reuse)
        rows[" ".join([f"megrez-compile {work.target}", *map(str, options)])] = Row(
            [sys.executable, PEERS / "run_megrez.py", bundle, work.threads, work.output_tokens, streams],
            artefacts.onnx_bytes_per_token(bundle) // streams,
            on_cpu=on_cpu,
        )
    name, ours = next(iter(rows.items()))
    if streams > 1:
        rows[f"{name}, one stream"] = Row([*ours.command[:-1], 1], ours.bytes_per_token * streams, ours.on_cpu)
    for kernels, setting in other_kernels().items() if on_cpu and work.variants else ():
        command = ["env", f"{custom_ops.SETTING}={setting}", *ours.command]
        rows[f"{name}, {kernels}"] = Row(command, ours.bytes_per_token)
    return rows


def peer_rows(peer: Peer, python: Path, cache: Path, source: Source, work: Workload) -> dict[str, Row]:
    """Usually one; raises UnavailableError where what the peer reads cannot be made."""
    path, kind, read = peer_model(peer, python, cache, source, work)
    threads = {f"{peer.name} {kind}": work.threads}
    if peer.artefact == "genai" and work.variants:
        threads |= {f"{peer.name} {kind}, its default threads": 0}
    lengths = artefacts.CONTEXT, work.output_tokens, work.streams
    script = PEERS / peer.script
    each, on_cpu = read // work.streams, work.device == "cpu"
    rows = {name: Row([python, script, path, used, *lengths], each, on_cpu) for name, used in threads.items()}
    if peer.artefact == "ik":
        rows[f"{peer.name} {kind}, repacked"] = Row([python, script, path, work.threads, *lengths, "--repack"], each)
    return rows


def quantised_cache_rows(
    cache: Path, source: Source, given: Mapping[str, Path], threads: int, lengths: str, steps: int, *, install: bool
) -> dict[str, list[object]]:
    """The commands of the peers with an 8-bit KV cache at given lengths; those without an environment are named."""
    makers = {
        "llama.cpp": (artefacts.llama_cpp_file, "kv_llama_cpp.py"),
        "ik_llama.cpp": (artefacts.ik_llama_file, "kv_ik_llama.py"),
    }
    found: dict[str, list[object]] = {}
    for peer in find_peers(tuple(makers), "cpu"):
        make, script = makers[peer.name]
        try:
            python = environment_of(peer, cache, given, install=install)
            command = [python, PEERS / script, make(cache, source, python), threads, lengths, steps]
        except (UnavailableError, RuntimeError) as error:
            print(f"{peer.name} is skipped: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        else:
            found[f"{peer.name} q8_0"] = command
    return found


def peer_model(peer: Peer, python: Path, cache: Path, source: Source, work: Workload) -> tuple[Path, str, int]:
    """What the peer reads, the name of its format, and the bytes of weights per token."""
    bits = work.bits
    if peer.artefact in ("ik", "llama"):
        make = artefacts.ik_llama_file if peer.artefact == "ik" else artefacts.llama_cpp_file
        path = make(cache, source, python, bits)
        return path, artefacts.gguf_types(path), artefacts.gguf_bytes_per_token(path)
    if peer.artefact == "openvino" and source.is_gguf:
        return source.path, artefacts.gguf_types(source.path), artefacts.gguf_bytes_per_token(source.path)
    if source.is_gguf:
        raise UnavailableError("it reads no GGUF file")
    if peer.artefact == "openvino":
        path = artefacts.openvino_folder(cache, source, python, bits)
        return path, f"int{bits}", artefacts.openvino_bytes_per_token(path)
    if peer.artefact in ("genai", "genai-cuda"):
        path = artefacts.genai_folder(cache, source, python, work.device, bits)
        return path, f"int{bits}", artefacts.onnx_bytes_per_token(path)
    name, size = ("bfloat16", 2) if work.device == "cuda" else ("float32", 4)
    return source.path, name, artefacts.checkpoint_bytes_per_token(source.path, size)


def other_kernels() -> dict[str, str]:
    """Values of MEGREZ_KERNELS for kernels other than this processor's default."""
    library = custom_ops.find_library()
    if library is None or not custom_ops.register(SessionOptions()):
        return {}
    found = {"ONNX Runtime's kernels": "0"}
    used = custom_ops.instructions(library) or ""
    if "AMX" in used:
        found["our kernels with AVX-512"] = "avx512"
    if used != "AVX2":
        found["our kernels with AVX2"] = "avx2"
    return found
