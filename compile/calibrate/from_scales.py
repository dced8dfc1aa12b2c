"""Read the scales of an earlier calibration; refuse those of another model, target or format."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megrez.calibration.reference.model import EMBED_TOKENS, LM_HEAD
from megrez.calibration.results.record import Record, check_hashes, read_record
from megrez.compile.calibrate.request import Job
from megrez.compile.calibrate.stage import quantized_format_of
from megrez.compile.calibrate.text import TextRequest
from megrez.compile.calibrate.text_records import default_name
from megrez.compile.checkpoint.calibrated import CalibratedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.graph.quantizer import block_format_of
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """target: with the calibration's tensors in higher precision. text: to measure fidelity on its held-out part."""

    checkpoint: CalibratedCheckpoint
    target: Target
    record: Record
    text: TextRequest


def read_scales(job: Job, path: Path) -> Scales:
    """Raises UsageError for scales of another target, model or format, and for damaged ones."""
    record = read_record(path)
    if record.target != job.target.name:
        raise UsageError(
            f"{path} was calibrated for {record.target}, not {job.target.name}: calibrate for {job.target.name}"
        )
    if record.model_sha256 != job.checkpoint.fingerprint():
        raise UsageError(
            f"{path} belongs to another model ({record.model}, SHA-256 {record.model_sha256[:12]}…) than "
            f"{job.checkpoint.source}: calibrate this one with  megrez calibrate"
        )
    check_hashes(record, path.parent)
    target = job.target if record.finer is None else job.target.with_higher_precision(frozenset(record.finer))
    calibrated = CalibratedCheckpoint(job.checkpoint, record, path.parent)
    _check_formats(path, job.checkpoint, calibrated, target)
    return Scales(checkpoint=calibrated, target=target, record=record, text=_held_out_text(record, job.request.text))


def _held_out_text(record: Record, request: TextRequest) -> TextRequest:
    """With the calibration's samples, length and seed, so that fidelity is not measured on calibration data."""
    used = record.text
    if used.source != (default_name() if request.path is None else request.path.name):
        return request
    return dataclasses.replace(request, samples=used.samples, length=used.tokens, seed=used.seed)


def _check_formats(path: Path, original: Checkpoint, calibrated: CalibratedCheckpoint, target: Target) -> None:
    """Raise UsageError where a matrix would be quantised again: smoothed, but without its calibration."""
    format_of, shapes = quantized_format_of(original, target), expected_tensors(original.config)
    for name, shape in shapes.items():
        is_lookup_table = name == EMBED_TOKENS and LM_HEAD in shapes
        weight_format = format_of(name) if len(shape) == 2 and not is_lookup_table else None
        if weight_format is not None and calibrated.block_format(name) != block_format_of(weight_format, shape[1]):
            raise UsageError(
                f"{path} does not hold {name} as {weight_format}: leave --block-size out, give --quantize-head "
                "only where it was calibrated with it, or calibrate again"
            )
