"""What a build starts from: the checkpoint as it is or as calibration leaves it, and the text to judge it by."""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megrez.calibration.record import Record, read_record
from megrez.compile.calibrate import calibrate_checkpoint, rounds_anything
from megrez.compile.calibrated_checkpoint import CalibratedCheckpoint
from megrez.compile.calibration_text import CalibrationText, TextRequest, read_text
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.held_out import HeldOut, read_held_out
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError

# Random weights have nothing to say about a text: a few random tokens give their inputs some scale.
DUMMY_TOKENS = 64
Progress = Callable[[int], Callable[[int], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """algorithm: a key of ALGORITHMS; None takes the target's own where the checkpoint has a tokenizer.

    scales: those of an earlier calibration, in place of a new one. weights: "checkpoint" or "dummy".
    """

    algorithm: str | None
    scales: Path | None
    text: TextRequest
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """record: None where nothing was calibrated. held_out: None where fidelity is not to be measured."""

    checkpoint: Checkpoint
    record: Record | None
    held_out: HeldOut | None

    def input_scale(self, name: str) -> float | None:
        """See megrez.compile.dialects.lower."""
        return self.checkpoint.input_scale(name) if isinstance(self.checkpoint, CalibratedCheckpoint) else None


def prepare(
    checkpoint: Checkpoint, target: Target, request: CalibrationRequest, context: int, work: Path, progress: Progress
) -> Prepared:
    """Calibrate where the target asks for it. work: where its JSON goes, files beside it; see `discard`.

    progress: told of how many layers will be walked, answers with what is to be told of each.
    """
    layers = checkpoint.config.num_hidden_layers
    if request.scales is not None:
        return _reuse(checkpoint, target, request, context, lambda: progress(layers))
    if request.weights == "dummy":
        if target.inputs is None:
            return Prepared(checkpoint=checkpoint, record=None, held_out=None)
        record, _ = calibrate_checkpoint(
            checkpoint, target, "rtn", _dummy_text(checkpoint, context), work, progress(layers)
        )
        return Prepared(checkpoint=CalibratedCheckpoint(checkpoint, record, work.parent), record=record, held_out=None)
    algorithm = request.algorithm or ("rtn" if checkpoint.text is None and target.inputs is None else target.algorithm)
    if (algorithm == "rtn" and target.inputs is None) or not rounds_anything(checkpoint, target):
        return Prepared(
            checkpoint=checkpoint,
            record=None,
            held_out=_held_out(checkpoint, target, request, context, lambda: progress(layers)),
        )
    text = read_text(checkpoint.text, request.text, context)
    record, held_out = calibrate_checkpoint(checkpoint, target, algorithm, text, work, progress(layers), reuse=True)
    return Prepared(
        checkpoint=CalibratedCheckpoint(checkpoint, record, work.parent),
        record=record,
        held_out=held_out if held_out.tokens.size else None,
    )


def discard(record: Record, work: Path) -> None:
    """Remove what `prepare` wrote for a build of its own."""
    work.unlink(missing_ok=True)
    for folder in {(work.parent / file.path).parent for file in record.files}:
        shutil.rmtree(folder, ignore_errors=True)


def _reuse(
    checkpoint: Checkpoint,
    target: Target,
    request: CalibrationRequest,
    context: int,
    progress: Callable[[], Callable[[int], None]],
) -> Prepared:
    assert request.scales is not None
    record = read_record(request.scales)
    if record.target != target.name:
        raise UsageError(f"{request.scales} was calibrated for {record.target}, not {target.name}: calibrate for it")
    if record.model_sha256 != checkpoint.fingerprint():
        raise UsageError(
            f"{request.scales} belongs to another model ({record.model}, SHA-256 {record.model_sha256[:12]}…) than "
            f"{checkpoint.source}: calibrate this one with  megrez calibrate"
        )
    # Held out from the text as it was cut for the calibration, so that nothing is judged by what it learned.
    own = record.text
    text = dataclasses.replace(request.text, samples=own.samples, length=own.tokens, seed=own.seed)
    calibrated = CalibratedCheckpoint(checkpoint, record, request.scales.parent)
    held_out = _held_out(checkpoint, target, dataclasses.replace(request, text=text), context, progress)
    return Prepared(checkpoint=calibrated, record=record, held_out=held_out)


def _held_out(
    checkpoint: Checkpoint,
    target: Target,
    request: CalibrationRequest,
    context: int,
    progress: Callable[[], Callable[[int], None]],
) -> HeldOut | None:
    """None for float32, which the graph's own tests hold, and where there is no text to read."""
    wanted = request.weights == "checkpoint" and target.weights is not None and checkpoint.text is not None
    if not wanted or request.text.fidelity_tokens == 0:
        return None
    return read_held_out(checkpoint, read_text(checkpoint.text, request.text, context), progress())


def _dummy_text(checkpoint: Checkpoint, context: int) -> CalibrationText:
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (1, min(DUMMY_TOKENS, context)))
    return CalibrationText(
        tokens=ids,
        held_out=ids[0, :0],
        source="random tokens",
        held_out_source="random tokens",
        sha256="",
        seed=0,
    )
