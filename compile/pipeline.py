"""From a checkpoint to a bundle: the stages in order; knows no option of the command line."""

from dataclasses import dataclass
from pathlib import Path

from megrez.compile.bundle_writer import Content, check_output, check_space, write_bundle
from megrez.compile.calibrate import discard
from megrez.compile.calibration_text import TextRequest
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.held_out import measure_bundle
from megrez.compile.prepare import CalibrationRequest, Preparation
from megrez.compile.report import Report
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Measured

DEFAULT_CONTEXT = 4096
DEFAULT_CALIBRATION = CalibrationRequest(text=TextRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compile. context: None takes the default, or the model's own where that is shorter."""

    checkpoint: Checkpoint
    target: Target
    output: Path
    context: int | None
    calibration: CalibrationRequest = DEFAULT_CALIBRATION


def compile_bundle(request: Request, report: Report) -> Path:
    """Compile and return the bundle's folder.

    Raises CheckpointError for a model that is not whole, UsageError for a request that cannot be met, BundleError
    when the bundle cannot be written.
    """
    checkpoint = request.checkpoint
    context = choose_context(request.context, checkpoint.config.max_position_embeddings)
    check_output(request.output)
    report.stage("checking the checkpoint")
    checkpoint.check()
    work = request.output.with_name(f"{request.output.name}.calibration.json")
    prepared = Preparation(
        checkpoint=checkpoint,
        target=request.target,
        request=request.calibration,
        context=context,
        work=work,
        report=report,
    ).run()
    target = prepared.target
    report.stage(f"tracing {checkpoint.config.num_hidden_layers} layers")
    # torch takes seconds to import: what can be refused is refused before.
    from megrez.compile.dialects import lower
    from megrez.compile.export.trace import trace
    from megrez.compile.weights import bind
    from megrez.engines.ort.build import build, data_bytes

    model = trace(checkpoint.config, context)
    bind(model, prepared.checkpoint, context)
    lower(model, prepared.checkpoint, target, prepared.input_scale)
    total = data_bytes(model)
    check_space(request.output, total)
    report.stage(f"writing {total / 1e9:.2f} GB of weights as {target.name}")
    progress = report.weights(total)
    content = Content(
        checkpoint=checkpoint,
        target=target,
        context=context,
        weights=request.calibration.weights,
        record=prepared.record,
    )

    def measure(bundle: Bundle) -> Measured | None:
        if prepared.held_out is None:
            return None
        report.stage(f"measuring fidelity on {prepared.held_out.tokens.size} tokens of {prepared.held_out.source}")
        return measure_bundle(bundle, checkpoint, prepared.held_out)

    write_bundle(request.output, content, lambda folder: build(model, folder, progress=progress), measure)
    if prepared.record is not None and request.calibration.scales is None:
        discard(work)
    return request.output


def choose_context(asked: int | None, longest: int) -> int:
    """The context to build for; raises UsageError when the model was not made for as much as was asked."""
    if asked is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 1 <= asked <= longest:
        raise UsageError(f"--context is {asked}, this model takes 1 to {longest}: choose one of these")
    return asked
