"""A build from the scales of an earlier calibration: read, and refused where they are not this model's or target's."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megrez.calibration.results.record import Record, check_hashes, read_record
from megrez.compile.calibrate.request import Job
from megrez.compile.calibrate.stage import rounded_form
from megrez.compile.calibrate.text import TextRequest
from megrez.compile.calibrate.text_records import default_name
from megrez.compile.checkpoint.calibrated import CalibratedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.graph.precision import EMBED_TOKENS, LM_HEAD
from megrez.compile.graph.quantizer import block_format_of
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """target: with the tensors that the calibration kept in finer formats. text: what fidelity may be measured on."""

    checkpoint: CalibratedCheckpoint
    target: Target
    record: Record
    text: TextRequest


def read_scales(job: Job, path: Path) -> Scales:
    """Raises UsageError for scales of another target, another model or other formats, and for damaged ones."""
    record = read_record(path)
    if record.target != job.target.name:
        raise UsageError(f"{path} was calibrated for {record.target}, not {job.target.name}: calibrate for it")
    if record.model_sha256 != job.checkpoint.fingerprint():
        raise UsageError(
            f"{path} belongs to another model ({record.model}, SHA-256 {record.model_sha256[:12]}…) than "
            f"{job.checkpoint.source}: calibrate this one with  megrez calibrate"
        )
    check_hashes(record, path.parent)
    target = job.target if record.finer is None else job.target.with_finer(frozenset(record.finer))
    calibrated = CalibratedCheckpoint(job.checkpoint, record, path.parent)
    _check_formats(path, job.checkpoint, calibrated, target)
    return Scales(checkpoint=calibrated, target=target, record=record, text=_held_out_text(record, job.request.text))


def _held_out_text(record: Record, asked: TextRequest) -> TextRequest:
    """Cut as it was for the calibration, so that nothing is measured on what was calibrated on."""
    used = record.text
    if used.source != (default_name() if asked.path is None else asked.path.name):
        return asked
    return dataclasses.replace(asked, samples=used.samples, length=used.tokens, seed=used.seed)


def _check_formats(path: Path, original: Checkpoint, calibrated: CalibratedCheckpoint, target: Target) -> None:
    """Quantised anew, a matrix would lose its calibration and keep its smoothing."""
    form, shapes = rounded_form(original, target), expected_tensors(original.config)
    for name, shape in shapes.items():
        looked_up = name == EMBED_TOKENS and LM_HEAD in shapes
        wanted = form(name) if len(shape) == 2 and not looked_up else None
        if wanted is not None and calibrated.block_format(name) != block_format_of(wanted, shape[1]):
            raise UsageError(
                f"{path} does not hold {name} as {wanted}: leave --block-size out, give --quantize-head where it "
                "was calibrated with it and nowhere else, or calibrate again"
            )
