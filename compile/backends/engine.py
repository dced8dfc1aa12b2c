"""From a lowered graph to an engine's files, and what a user may ask of that; knows no checkpoint."""

from pathlib import Path

import onnx_ir as ir

from megrez.compile.backends.npu import ContextsPlan, GraphsPlan, plan_npu
from megrez.compile.commands.engine_options import EngineOptions
from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.compile.graph.passes.static_shapes import StaticShapes
from megrez.compile.report import Report
from megrez.engines.devices import find_capabilities
from megrez.engines.onnx_files import data_bytes, write_onnx
from megrez.engines.targets import Target
from megrez.engines.tensorrt.cuda import capability_at_hand
from megrez.engines.tensorrt.library import RTX, buildable, check_buildable, choose_library, load_library
from megrez.engines.tensorrt.plan import PlanRequest
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Device

# Tokens of a prompt that one step takes, and rows of logits that it gives: memory for speed.
CHUNK, ROWS = 512, 64
NATIVE = "native"


Plan = PlanRequest | GraphsPlan | ContextsPlan


def plan_request(target: Target, context: int, options: EngineOptions) -> Plan | None:
    """What to build an engine for, None where the target's engine reads the graph itself.

    Raises UsageError for what the devices or the library cannot do, MissingExtraError where there is no library:
    before any work.
    """
    if target.dialect == "qnn":
        return plan_npu(target, context, options)
    if options.chunk is not None or options.share_weights:
        raise UsageError(
            f"--chunk and --share-weights are for NPUs, {target.name} is for {target.devices}: leave them out"
        )
    return _plan_tensorrt(target, context, options)


def _plan_tensorrt(target: Target, context: int, options: EngineOptions) -> PlanRequest | None:
    capabilities = () if options.arch in (None, NATIVE) else find_capabilities(options.arch)
    if options.arch is not None:
        target.check_capabilities(capabilities)
    if target.engine != "tensorrt":
        if options != EngineOptions(arch=options.arch):
            raise UsageError(f"--batch and the builder's options are for TensorRT engines, {target.name} builds none")
        return None
    if options.batch < 1:
        raise UsageError(f"--batch is {options.batch}: ask for at least 1")
    name = choose_library(options.builder)
    if options.hardware_compatible and name == RTX:
        raise UsageError("--hardware-compatible is TensorRT's, TensorRT-RTX builds for all of --arch: leave it out")
    library = load_library(name)
    here = None
    if capabilities:
        check_buildable(library, capabilities)
    elif name == RTX and options.arch is None:
        capabilities = tuple(one for one in buildable(library) if one >= (target.min_capability or 0))
    else:
        here = capability_at_hand(name)
        target.check_capabilities((here,))
    return PlanRequest(
        library=name,
        capabilities=capabilities,
        here=here,
        slots=options.batch,
        chunk=min(CHUNK, context),
        rows=max(ROWS, options.batch),
        workspace_bytes=options.workspace_bytes,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )


def disk_bytes(model: ir.Model, plan: Plan | None) -> int:
    """What the files take while they are made: an engine's graph lies beside it until it is whole."""
    total = data_bytes(model)
    return 2 * total if isinstance(plan, PlanRequest) else total


def build_engine(
    model: ir.Model, folder: Path, context: int, plan: PlanRequest | None, report: Report
) -> Device | None:
    """Write the engine's files; the device that they need, None for any. Rewrites the portable graph to build a plan.

    See megrez.engines.tensorrt.build.
    """
    if plan is None:
        total = data_bytes(model)
        report.stage(f"writing {total / 1e9:.2f} GB of weights")
        write_onnx(model, folder, progress=report.weights(total))
        return None
    from megrez.engines.tensorrt.build import build

    for one in (HalfPrecision(), StaticShapes({"capacity": context})):
        one(model)
    total = data_bytes(model)
    report.stage(f"writing {total / 1e9:.2f} GB of weights for {plan.library}")
    written = report.weights(total)
    return build(model, folder, plan, written=written, building=report.phase)
