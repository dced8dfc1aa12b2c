"""The verb `megrez doctor`: what this machine can compile for and run, and what is missing; imports no engine."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from megrez.compile import machine
from megrez.engines.devices import spell
from megrez.engines.ort.custom_ops import SETTING, find_library, judge
from megrez.runtime.commands.options import json_file_option, json_option, show
from megrez.runtime.errors import MegrezError
from megrez.runtime.threads import default_threads

PACKAGES = (
    "megrez-compile", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "tensorrt-rtx-cu13",
    "tensorrt-cu13", "cuda-bindings", "torch", "transformers", "onnx",
)  # fmt: skip
# Imported to trace a checkpoint to a graph.
_EXPORT = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors")
_OLDEST_SM = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """compiles, runs: "yes", or the reason why not and the remedy."""

    name: str
    targets: str
    compiles: str
    runs: str


@click.command("doctor")
@json_option
@json_file_option
def doctor_command(as_json: bool, json_file: Path | None) -> None:
    """Show what this machine can compile for and run, and how to install what is missing."""
    found = {"engines": [asdict(engine) for engine in engines()], "machine": describe()}
    show(_table(found["engines"], found["machine"]), json.dumps(found, indent=2), as_json=as_json, json_file=json_file)


def engines() -> list[Engine]:
    """Whether each engine's targets compile and run here."""
    gpus = machine.gpus()
    export = _needs(_EXPORT, "export")
    gpu = "yes" if any(gpu.capability >= _OLDEST_SM for gpu in gpus) else _no_gpu(gpus)
    rtx = _needs(("tensorrt_rtx", "onnx", "onnx_ir"), "rtx")
    trt = _needs(("tensorrt", "onnx", "onnx_ir"), "trt")
    qnn = _needs(("onnxruntime_qnn", "onnxruntime"), "qnn")
    bindings = _needs(("cuda.bindings",), "cuda")
    return [
        Engine(name="ONNX Runtime CPU", targets="cpu-*", compiles=export, runs=_ort_cpu()),
        Engine(name="ONNX Runtime CUDA", targets="cuda-*", compiles=export, runs=_all(_ort_cuda(), bindings, gpu)),
        Engine(
            name="TensorRT-RTX",
            targets="trt-*, ahead of time",
            compiles=_all(export, rtx),
            runs=_all(rtx, _needs(("cuda.bindings",), "rtx"), gpu),
        ),
        Engine(
            name="TensorRT",
            targets="trt-*, for this machine's GPU",
            compiles=_all(export, trt, gpu),
            runs=_all(trt, _needs(("cuda.bindings",), "trt"), gpu),
        ),
        Engine(
            name="QNN",
            targets="qnn-*",
            compiles=_all(export, qnn),
            runs=qnn if qnn != "yes" or platform.machine() in ("aarch64", "arm64", "ARM64") else "yes, in the emulator",
        ),
    ]


def describe() -> dict[str, str]:
    """This machine, one line of text for each property."""
    threads = default_threads()
    model, instructions = machine.processor()
    memory, cache = machine.memory(), machine.hub_cache()
    rows = {
        "Python": f"{platform.python_version()} on {platform.system()}",
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := machine.package_version(name))),
        "conflict": _conflict() or "none",
        "GPU": "; ".join(
            f"{gpu.name}, {spell([gpu.capability])}, driver {gpu.driver}, {gpu.free_mib} of {gpu.memory_mib} MiB free"
            for gpu in machine.gpus()
        )
        or "none found by nvidia-smi",
        "CPU": f"{model}: {', '.join(instructions) or 'none of the relevant instructions'}",
        "kernels": kernels(),
        "threads": f"{threads} by default",
        "memory": f"{_gib(memory[1])} of {_gib(memory[0])} available" if memory else "unknown",
        "bandwidth": f"{machine.read_bandwidth(threads) / 1e9:.1f} GB/s read by {threads} threads",
        "huge pages": machine.huge_pages(),
        "disk": f"{_gib(machine.free_disk(Path.cwd()))} free here, "
        f"{_gib(machine.free_disk(cache))} for Hugging Face's cache {cache}",
        "C compiler": machine.c_compiler() or "none: our CPU kernels cannot be built when the package is installed",
    }
    return rows


def kernels() -> str:
    """Whose kernels a CPU bundle runs, and why."""
    library, setting = find_library(), os.environ.get(SETTING, "")
    if setting == "0":
        return f"ONNX Runtime's: {SETTING} is 0"
    if library is None:
        return "ONNX Runtime's: ours were not built: installing megrez-compile needs a C compiler for that"
    try:
        verdict = judge(library)
    except MegrezError as error:
        return f"none: {error}"
    if verdict == 0:
        return "ONNX Runtime's: this CPU lacks AVX2, which ours need"
    if verdict == 2 and not setting:
        return f"ONNX Runtime's: this CPU has VNNI, which they use ({SETTING}=1 selects ours)"
    return "ours, for float32 graphs"


def _needs(modules: tuple[str, ...], extra: str) -> str:
    missing = [module for module in modules if not machine.can_import(module)]
    if not missing:
        return "yes"
    return f"no, {', '.join(missing)} missing: run  pip install 'megrez-compile[{extra}]'"


def _all(*answers: str) -> str:
    """ "yes" where all are, else every reason once."""
    return "; ".join(dict.fromkeys(answer for answer in answers if answer != "yes")) or "yes"


def _conflict() -> str | None:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if machine.package_version(name)]
    if len(both) < 2:
        return None
    return (
        "onnxruntime and onnxruntime-gpu install the same folder: run  pip uninstall onnxruntime onnxruntime-gpu  "
        "and install the extra cpu or cuda alone"
    )


def _ort_cpu() -> str:
    return _conflict_or(_needs(("onnxruntime",), "cpu"))


def _ort_cuda() -> str:
    if machine.package_version("onnxruntime-gpu"):
        return _conflict_or("yes")
    return "no, onnxruntime-gpu missing: run  pip install 'megrez-compile[cuda]'  where onnxruntime is not installed"


def _conflict_or(answer: str) -> str:
    found = _conflict()
    return answer if found is None else f"no, {found}"


def _no_gpu(gpus: list[machine.Gpu]) -> str:
    if not gpus:
        return "no NVIDIA GPU was found (nvidia-smi lists none)"
    return f"the GPU is {spell([gpus[0].capability])}, which needs to be {spell([_OLDEST_SM])} or later"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _table(engines: object, described: object) -> str:
    assert isinstance(engines, list) and isinstance(described, dict)
    lines = []
    for engine in engines:
        lines.append(f"{engine['name']} ({engine['targets']})")
        lines += [f"  compiles  {engine['compiles']}", f"  runs      {engine['runs']}"]
    return "\n".join([*lines, "", *(f"{name:<12}{value}" for name, value in described.items())])
