"""The verb `megrez doctor`: what this machine can compile for and run, and what is missing; imports no engine."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from megrez.compile import machine
from megrez.engines.devices import spell
from megrez.engines.ort.custom_ops import SETTING, find_library, instructions
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
    """compiles, runs: "yes", or "no" with the reasons and the commands that help."""

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
    export, gpu = _missing(_EXPORT, "export"), _no_gpu(gpus)
    rtx = _missing(("tensorrt_rtx", "onnx", "onnx_ir"), "rtx")
    trt = _missing(("tensorrt", "onnx", "onnx_ir"), "trt")
    qnn = _missing(("onnxruntime_qnn", "onnxruntime"), "qnn")
    bindings = {extra: _missing(("cuda.bindings",), extra) for extra in ("cuda", "rtx", "trt")}
    return [
        Engine(
            name="ONNX Runtime CPU",
            targets="cpu-*",
            compiles=_answer(export),
            runs=_answer(_conflict() or _missing(("onnxruntime",), "cpu")),
        ),
        Engine(
            name="ONNX Runtime CUDA",
            targets="cuda-*",
            compiles=_answer(export),
            runs=_answer(_no_ort_cuda(), bindings["cuda"], gpu),
        ),
        Engine(
            name="TensorRT-RTX",
            targets="trt-*, ahead of time",
            compiles=_answer(export, rtx),
            runs=_answer(rtx, bindings["rtx"], gpu),
        ),
        Engine(
            name="TensorRT",
            targets="trt-*, for this machine's GPU",
            compiles=_answer(export, trt, gpu),
            runs=_answer(trt, bindings["trt"], gpu),
        ),
        Engine(name="QNN", targets="qnn-*", compiles=_answer(export, qnn), runs=_answer(qnn, yes=_where_qnn_runs())),
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
        "C compiler": machine.c_compiler() or "none, so installing megrez-compile skips our CPU kernels",
    }
    return rows


def kernels() -> str:
    """Whether CPU bundles run our kernels or ONNX Runtime's, and why."""
    library, setting = find_library(), os.environ.get(SETTING, "")
    if setting == "0":
        return f"ONNX Runtime's: {SETTING} is 0"
    if library is None:
        return "ONNX Runtime's: ours were not built, which needs a C compiler when megrez-compile is installed"
    try:
        found = instructions(library)
    except MegrezError as error:
        return f"none: {error}"
    if found is None:
        return "ONNX Runtime's: this CPU lacks AVX2, which ours need"
    return f"ours with {found}, for float32 graphs"


def _answer(*reasons: str | None, yes: str = "yes") -> str:
    """`yes` where there is no reason against it, else "no" and every reason once."""
    against = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
    return f"no: {against}" if against else yes


def _missing(modules: tuple[str, ...], extra: str) -> str | None:
    """The command that installs what is missing; pip takes it in a checkout's environment too."""
    missing = [module for module in modules if not machine.can_import(module)]
    return f"{', '.join(missing)} not installed, run  pip install 'megrez-compile[{extra}]'" if missing else None


def _conflict() -> str | None:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if machine.package_version(name)]
    if len(both) < 2:
        return None
    return (
        "onnxruntime and onnxruntime-gpu install the same folder, run  pip uninstall -y onnxruntime onnxruntime-gpu  "
        "and then  pip install 'megrez-compile[cpu]'  or  pip install 'megrez-compile[cuda]'"
    )


def _no_ort_cuda() -> str | None:
    if machine.package_version("onnxruntime-gpu"):
        return _conflict()
    return (
        "onnxruntime-gpu not installed, run  pip install 'megrez-compile[cuda]'  in an environment without onnxruntime"
    )


def _no_gpu(gpus: list[machine.Gpu]) -> str | None:
    if not gpus:
        return "nvidia-smi lists no NVIDIA GPU"
    if any(gpu.capability >= _OLDEST_SM for gpu in gpus):
        return None
    return f"the GPU is {spell([gpus[0].capability])}, and {spell([_OLDEST_SM])} or later is needed"


def _where_qnn_runs() -> str:
    return "yes" if platform.machine() in ("aarch64", "arm64", "ARM64") else "yes, in the emulator"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _table(engines: object, described: object) -> str:
    assert isinstance(engines, list) and isinstance(described, dict)
    lines = []
    for engine in engines:
        lines.append(f"{engine['name']} ({engine['targets']})")
        lines += [f"  compiles  {engine['compiles']}", f"  runs      {engine['runs']}"]
    return "\n".join([*lines, "", *(f"{name:<12}{value}" for name, value in described.items())])
