"""From a checkpoint to a bundle: the stages in order; knows no option of the command line."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megrez.compile.backends.backend import Lowered, Plan
from megrez.compile.backends.choose import backend_of
from megrez.compile.backends.options import ANY_DEVICE, EngineOptions
from megrez.compile.bundle.describe import Content, describe, kv_cache
from megrez.compile.bundle.output import check_output, check_space, locked
from megrez.compile.bundle.writer import new_bundle
from megrez.compile.calibrate.cache_fidelity import measure_cache
from megrez.compile.calibrate.held_out import measure_bundle
from megrez.compile.calibrate.prepare import Prepared, prepare
from megrez.compile.calibrate.request import CalibrationRequest, Job
from megrez.compile.calibrate.space import estimate_weights
from megrez.compile.calibrate.stage import discard
from megrez.compile.calibrate.text import TextRequest, with_samples
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.rotated import rotate_for
from megrez.compile.graph.dialects import check_shape
from megrez.compile.graph.lowered import lowered
from megrez.compile.report import Report
from megrez.compile.staged import build_from
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import CacheFidelity, Measured

DEFAULT_CALIBRATION = CalibrationRequest(text=TextRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compile. context: None for the target's default, or the model's maximum where that is shorter."""

    checkpoint: Checkpoint
    target: Target
    output: Path
    context: int | None
    calibration: CalibrationRequest = DEFAULT_CALIBRATION
    engine: EngineOptions = ANY_DEVICE


def compile_bundle(request: Request, report: Report) -> Path:
    """Compile and return the bundle's folder.

    Raises CheckpointError for an incomplete model, UsageError for a request that cannot be met, BundleError where the
    bundle cannot be written.
    """
    job, plan = check(request)
    with locked(request.output):
        report.stage("checking the checkpoint")
        job.checkpoint.check()
        _report_ignored(job.checkpoint, report)
        check_space(request.output, estimate_weights(job.checkpoint, job.target))
        prepared = prepare(job, report)
        if plan.staged is None:
            write_graph(job, plan, prepared, request.output, report)
        else:
            with _staged_beside(request.output) as graphs:
                write_graph(job, plan, prepared, graphs, report)
                build_from(open_bundle(graphs), request.target, plan, request.output, report)
        if prepared.is_new:
            discard(job.work)
    return request.output


def _report_ignored(checkpoint: Checkpoint, report: Report) -> None:
    if checkpoint.text is not None and checkpoint.text.ignored:
        ignored = ", ".join(checkpoint.text.ignored)
        report.text(f"generation options of the checkpoint that the runtime does not support: {ignored}")


def check(request: Request) -> tuple[Job, Plan]:
    """The calibration job and the build's plan; raises UsageError for all that can be refused before any work."""
    target, config = request.target, request.checkpoint.config
    context = choose_context(request.context, config.max_position_embeddings, target.default_context)
    check_shape(config, target)
    check_output(request.output)
    plan = backend_of(target).plan(target, context, kv_cache(config, target), request.engine)
    if plan.staged is not None:
        check_output(_graphs_of(request.output))
    dummy = request.calibration.weights == "dummy"  # rotated random weights are as random
    job = Job(
        checkpoint=request.checkpoint if dummy else rotate_for(request.checkpoint, target),
        target=target if plan.staged is None else target.staged(),
        request=replace(request.calibration, text=with_samples(request.calibration.text, request.checkpoint, target)),
        context=context,
        work=request.output.with_name(f"{request.output.name}.calibration.json"),
    )
    return job, plan


def write_graph(job: Job, plan: Plan, prepared: Prepared, output: Path, report: Report) -> None:
    """Trace, lower, build, describe and measure: write the bundle `output` from the graph by `plan`."""
    target, layers = prepared.target, job.checkpoint.config.num_hidden_layers
    report.stage(f"tracing {layers} layers for {target.name}")
    model = lowered(prepared.checkpoint, target, job.context, prepared.input_scale)
    graph = Lowered(model=model, checkpoint=prepared.checkpoint, observed=prepared.observed)
    content = Content(
        checkpoint=job.checkpoint,
        target=target,
        context=job.context,
        weights=job.request.weights,
        record=prepared.record,
    )
    check_space(output, plan.graph.disk_bytes(graph))
    with new_bundle(output) as new:
        device = plan.graph.build(graph, new.folder, report)
        finished = new.finish(describe(content), job.checkpoint.text, device)
        cache = _measure_cache(finished, job, report)
        measured = _measure(finished, prepared, report)
        if cache or measured is not None:
            new.state(finished, measured, cache)


def _measure(bundle: Bundle, prepared: Prepared, report: Report) -> Measured | None:
    if prepared.held_out is None or prepared.target.fidelity_engine is None:
        return None
    report.stage(f"measuring fidelity on {prepared.held_out.tokens.size} tokens of {prepared.held_out.source}")
    return measure_bundle(bundle, prepared.target, prepared.held_out)


def _measure_cache(bundle: Bundle, job: Job, report: Report) -> tuple[CacheFidelity, ...]:
    """What the KV cache's format costs; nothing for the data type in which the graph computes, or without a text."""
    target, request, text = job.target, job.request, job.checkpoint.text
    measurable = request.weights == "checkpoint" and text is not None and request.text.fidelity_tokens > 0
    if not measurable or text is None or target.engine != "ort" or target.kv_dtype == target.float_dtype:
        return ()
    return measure_cache(bundle, text, request.text, report)


@contextlib.contextmanager
def _staged_beside(output: Path) -> Iterator[Path]:
    """The path of the staged bundle from which `output` is built, which is removed at the end."""
    graphs = _graphs_of(output)
    try:
        yield graphs
    finally:
        shutil.rmtree(graphs, ignore_errors=True)


def _graphs_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.graphs")


def choose_context(requested: int | None, longest: int, default: int) -> int:
    """The context to build for; raises UsageError where it exceeds the model's maximum."""
    if requested is None:
        return min(default, longest)
    if not 1 <= requested <= longest:
        raise UsageError(f"--context is {requested}, this model takes 1 to {longest}: choose one of these")
    return requested
