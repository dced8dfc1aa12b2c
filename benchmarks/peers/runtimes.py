"""The runtimes that benchmarks/speed.py compares: what each needs, and the environment that it runs in."""

import importlib.util
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """module: what its environment must import. requirements: for pip. script: beside this file. device: "cpu", "cuda".

    without: packages that pip brings and that are removed again.

    artefact: what it reads: "genai" and "genai-cuda" (folders of onnxruntime-genai's builder), "ik" and "llama" (GGUF
    files that each quantised itself), "openvino" (optimum-intel's folder, or a GGUF file), "hf" (the checkpoint).
    """

    name: str
    module: str
    requirements: tuple[str, ...]
    script: str
    artefact: str
    device: str = "cpu"
    without: tuple[str, ...] = ()


_BUILDER = ("torch==2.13.0", "transformers>=5.20,<6", "onnx-ir>=1.1,<2")
PEERS = (
    Peer(
        name="onnxruntime-genai",
        module="onnxruntime_genai",
        requirements=("onnxruntime-genai==0.18.0", *_BUILDER),
        script="run_genai.py",
        artefact="genai",
    ),
    Peer(
        name="ik_llama.cpp",
        module="ik_llama_cpp",
        requirements=("ik-llama-cpp-python==0.1.5",),
        script="run_ik_llama.py",
        artefact="ik",
    ),
    Peer(
        name="llama.cpp",
        module="llama_cpp",
        requirements=("llama-cpp-python==0.3.36",),
        script="run_llama_cpp.py",
        artefact="llama",
    ),
    Peer(
        name="OpenVINO GenAI",
        module="openvino_genai",
        requirements=("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", "torch==2.13.0"),
        script="run_openvino.py",
        artefact="openvino",
        without=("torchvision",),  # of another build than torch it fails to import, and transformers with it
    ),
    Peer(
        name="transformers",
        module="transformers",
        requirements=("torch==2.13.0", "transformers>=5.20,<6", "accelerate>=1.15"),
        script="run_transformers.py",
        artefact="hf",
    ),
    # On GPUs. None of these has been run yet: no GPU was at hand.
    Peer(
        name="onnxruntime-genai-cuda",
        module="onnxruntime_genai",
        requirements=("onnxruntime-genai-cuda", *_BUILDER),
        script="run_genai.py",
        artefact="genai-cuda",
        device="cuda",
    ),
    Peer(
        name="transformers-cuda",
        module="transformers",
        requirements=("torch==2.13.0", "transformers>=5.20,<6", "accelerate>=1.15"),
        script="run_transformers.py",
        artefact="hf",
        device="cuda",
    ),
    Peer(name="vLLM", module="vllm", requirements=("vllm",), script="run_vllm.py", artefact="hf", device="cuda"),
    Peer(
        name="TensorRT-LLM",
        module="tensorrt_llm",
        requirements=("tensorrt-llm",),
        script="run_tensorrt_llm.py",
        artefact="hf",
        device="cuda",
    ),
)


class UnavailableError(Exception):
    """A peer that cannot run here; the reason in one line."""


def environment_of(peer: Peer, cache: Path, given: Mapping[str, Path], *, install: bool) -> Path:
    """A Python that has the peer: a given one, or that of an environment in the cache, made on first use.

    Raises UnavailableError where it is neither there nor may be installed, or where pip fails.
    """
    if peer.name in given:
        if not has_module(given[peer.name], peer.module):
            raise UnavailableError(f"{given[peer.name]} has no {peer.module}: name a Python that has it")
        return given[peer.name]
    folder = cache / "environments" / peer.name.replace(" ", "-")
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        if not install:
            raise UnavailableError(f"no environment in {folder}: give --install, or --python '{peer.name}=PATH'")
        print(f"installing {peer.name} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *peer.requirements], stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError(f"pip cannot install {' '.join(peer.requirements)}: {' '.join(lines)[:300]}")
        if peer.without:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *peer.without], check=True)
    if not has_module(python, peer.module):
        raise UnavailableError(f"{folder} is incomplete: remove it, or give --python '{peer.name}=PATH'")
    return python


def has_module(python: Path, module: str) -> bool:
    if python == Path(sys.executable):
        return importlib.util.find_spec(module) is not None
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", code]).returncode == 0


def find_peers(names: tuple[str, ...], device: str) -> list[Peer]:
    """Those named, by default all of the device; raises UnavailableError for a name that none has."""
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise UnavailableError(f"there is no peer {unknown[0]}: choose from {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return [peer for peer in PEERS if peer.device == device]
