"""Build a TensorRT engine: from an ONNX graph to `model.plan` and an audited `fusion.json`; knows no checkpoint."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from megrez.engines.onnx_files import write_onnx
from megrez.engines.ort import MODEL_FILE
from megrez.engines.tensorrt import PLAN_FILE
from megrez.engines.tensorrt.audit import audit
from megrez.engines.tensorrt.graph import graph_faults, read_graph
from megrez.engines.tensorrt.kernels import read_kernels
from megrez.engines.tensorrt.library import check_buildable, load_library
from megrez.engines.tensorrt.plan import Phase, PlanRequest, build_plan
from megrez.runtime.errors import EngineError
from megrez.runtime.fusion import FUSION_FILE
from megrez.runtime.manifest import Device

# Faults that a message names; the rest is counted.
NAMED = 3
# What TensorRT's hardware compatibility promises.
AMPERE_AND_LATER = "sm_80+"


def build(
    model: ir.Model,
    folder: Path,
    request: PlanRequest,
    *,
    written: Callable[[int], None] = lambda size: None,
    building: Phase = lambda name, done, total: None,
) -> Device:
    """Build `model` (float16, static capacity) into `folder`; returns the manifest's device requirements.

    The ONNX file lies beside the engine until that is complete. written: called with the bytes of each weight.
    Raises EngineError that names the layers where the graph cannot run correctly or the kernels deviate from it.
    """
    library = load_library(request.library)
    if request.capabilities:
        check_buildable(library, request.capabilities)
    _refuse(graph_faults(model), "the graph cannot be built")
    spec = read_graph(model)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        write_onnx(model, Path(work), progress=written)
        built = build_plan(library, Path(work) / MODEL_FILE, folder / PLAN_FILE, request, building)
    kernels = read_kernels(built.log)
    if not kernels:
        raise EngineError(f"{request.library} {built.version} listed no kernels, so its engine cannot be audited")
    fusion, faults = audit(spec, kernels, built.log)
    _refuse(faults, f"the engine built by {request.library} {built.version} deviates from its graph")
    (folder / FUSION_FILE).write_text(fusion.to_json(), encoding="utf-8")
    return Device(
        library=request.library,
        version=built.version,
        capabilities=_capabilities(request),
        slots=request.slots,
        chunk=request.chunk,
        max_logits=request.max_logits,
        memory_bytes=built.memory_bytes,
        version_compatible=request.version_compatible,
    )


def _capabilities(request: PlanRequest) -> tuple[str, ...]:
    """In the manifest's format; see megrez.runtime.manifest.Device."""
    if request.hardware_compatible:
        return (AMPERE_AND_LATER,)
    return tuple(f"sm_{one}" for one in request.capabilities or (request.here,))


def _refuse(faults: list[str], summary: str) -> None:
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise EngineError(
            f"{summary}: {'; '.join(faults[:NAMED])}{more}: choose another target, or report this as a bug"
        )
