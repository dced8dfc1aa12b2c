"""From a checkpoint to a bundle: the stages in order; knows no option of the command line."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from megrez.compile.backends.engine import Plan, build_engine, disk_bytes, plan_request
from megrez.compile.backends.npu import ContextsPlan, GraphsPlan
from megrez.compile.bundle.writer import Content, check_output, check_space, describe, write_bundle
from megrez.compile.calibrate.held_out import measure_bundle
from megrez.compile.calibrate.prepare import CalibrationRequest, Preparation, Prepared
from megrez.compile.calibrate.stage import discard
from megrez.compile.calibrate.text import TextRequest
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.rotated import rotate_for
from megrez.compile.commands.engine_options import ANY_DEVICE, EngineOptions
from megrez.compile.graph.dialects import check_shape
from megrez.compile.graph.lowered import lowered
from megrez.compile.report import Report
from megrez.compile.staged import build_staged
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Device, Measured

DEFAULT_CALIBRATION = CalibrationRequest(text=TextRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compile. context: None takes the default, or the model's own where that is shorter."""

    checkpoint: Checkpoint
    target: Target
    output: Path
    context: int | None
    calibration: CalibrationRequest = DEFAULT_CALIBRATION
    engine: EngineOptions = ANY_DEVICE


def compile_bundle(request: Request, report: Report) -> Path:
    """Compile and return the bundle's folder.

    Raises CheckpointError for a model that is not whole, UsageError for a request that cannot be met, BundleError
    when the bundle cannot be written.
    """
    if _compile(request, report):
        discard(_work(request.output))
    return request.output


def _work(output: Path) -> Path:
    """Where the calibration of a bundle is kept until that is whole."""
    return output.with_name(f"{output.name}.calibration.json")


def _compile(request: Request, report: Report) -> bool:
    """Do as compile_bundle says; whether a calibration is left, which the bundle needs no longer."""
    dummy = request.calibration.weights == "dummy"  # which is as random in every direction
    checkpoint = request.checkpoint if dummy else rotate_for(request.checkpoint, request.target)
    context = choose_context(request.context, checkpoint.config.max_position_embeddings, request.target.default_context)
    check_shape(checkpoint.config, request.target)
    check_output(request.output)
    plan = plan_request(request.target, context, request.engine)
    if isinstance(plan, ContextsPlan):
        _through_graphs(request, report)
        return False
    report.stage("checking the checkpoint")
    checkpoint.check()
    if checkpoint.text is not None and checkpoint.text.ignored:
        report.text(
            f"recommended for generating, and not followed by the runtime: {', '.join(checkpoint.text.ignored)}"
        )
    prepared = Preparation(
        checkpoint=checkpoint,
        target=request.target,
        request=request.calibration,
        context=context,
        work=_work(request.output),
        report=report,
    ).run()
    report.stage(f"tracing {checkpoint.config.num_hidden_layers} layers for {request.target.name}")
    model = lowered(prepared.checkpoint, prepared.target, context, prepared.input_scale)
    check_space(request.output, disk_bytes(model, plan))
    content = Content(
        checkpoint=checkpoint,
        target=prepared.target,
        context=context,
        weights=request.calibration.weights,
        record=prepared.record,
    )
    write_bundle(
        request.output,
        describe(content),
        checkpoint.text,
        lambda folder: _build(model, prepared, folder, context, plan, report),
        lambda bundle: _measure(bundle, prepared, report),
    )
    return prepared.record is not None and request.calibration.scales is None


def _build(
    model: ir.Model, prepared: Prepared, folder: Path, context: int, plan: Plan | None, report: Report
) -> Device | None:
    if isinstance(plan, GraphsPlan):
        from megrez.compile.graph.static.graphs import write_static_graphs

        write_static_graphs(model, prepared, folder, context, plan.chunk, report)
        return None
    assert not isinstance(plan, ContextsPlan), "contexts are built from graphs"
    return build_engine(model, folder, context, plan, report)


def _through_graphs(request: Request, report: Report) -> None:
    """An NPU's contexts by way of a bundle of their graphs, which tells what they are worth: no NPU is at hand."""
    graphs = request.output.with_name(f".{request.output.name}.graphs")
    check_output(graphs)  # before it is removed
    staged = replace(
        request, target=request.target.staged(), output=graphs, engine=EngineOptions(chunk=request.engine.chunk)
    )
    try:
        calibrated = _compile(staged, report)
        build_staged(str(graphs), None, request.output, replace(request.engine, chunk=None), report)
    finally:
        shutil.rmtree(graphs, ignore_errors=True)
    if calibrated:
        discard(_work(graphs))  # not before the contexts are whole: a next try goes on from it


def _measure(bundle: Bundle, prepared: Prepared, report: Report) -> Measured | None:
    held_out = prepared.held_out
    if held_out is None or not (prepared.target.runs_here or prepared.target.half):
        return None
    report.stage(f"measuring fidelity on {held_out.tokens.size} tokens of {held_out.source}")
    return measure_bundle(bundle, held_out)


def choose_context(asked: int | None, longest: int, default: int) -> int:
    """The context to build for; raises UsageError when the model was not made for as much as was asked."""
    if asked is None:
        return min(default, longest)
    if not 1 <= asked <= longest:
        raise UsageError(f"--context is {asked}, this model takes 1 to {longest}: choose one of these")
    return asked
