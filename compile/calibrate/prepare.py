"""Prepare a build: the checkpoint, calibrated where needed, and the text to measure fidelity on."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import INPUT_TYPES
from megrez.calibration.results.record import Record
from megrez.compile.calibrate.from_scales import read_scales
from megrez.compile.calibrate.held_out import HeldOut, read_reference
from megrez.compile.calibrate.request import Job
from megrez.compile.calibrate.self_generated import calibration_text
from megrez.compile.calibrate.space import check_space_to_calibrate
from megrez.compile.calibrate.stage import calibrate_checkpoint, quantizes_anything
from megrez.compile.calibrate.text import CalibrationText, read_text
from megrez.compile.calibrate.within_budget import calibrate_within, report_sensitivities
from megrez.compile.checkpoint.calibrated import CalibratedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.report import Report
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError

# The range of all inputs where weights are random: after a norm their standard deviation is 1.
DUMMY_RANGE = 8.0
# Calibration samples on which the ranges of values are observed.
OBSERVED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """target: the requested one, with the tensors that --max-kl keeps in higher precision.

    record: None without calibration. held_out: None where fidelity is not measured. dummy_scale: of all inputs, where
    weights are random. observed: samples [S, T] on which the ranges of values are observed; None for targets that do
    not need them. is_new: whether the record was calibrated for this build, and its files are removed when the bundle
    is complete.
    """

    checkpoint: Checkpoint
    target: Target
    record: Record | None = None
    held_out: HeldOut | None = None
    dummy_scale: float | None = None
    observed: NDArray[np.int64] | None = None
    is_new: bool = False

    def input_scale(self, name: str) -> float | None:
        """See megrez.compile.graph.dialects.lower."""
        found = self.checkpoint.input_scale(name) if isinstance(self.checkpoint, CalibratedCheckpoint) else None
        return self.dummy_scale if found is None else found


def prepare(job: Job, report: Report) -> Prepared:
    """Calibrate where the target needs it; an interrupted calibration is resumed.

    Where the target allows RTN, it is the default for checkpoints without a tokenizer.
    Raises UsageError for a request that cannot be met, CheckpointError for weights that are not finite.
    """
    if job.request.weights == "dummy":
        return _dummy(job)
    # First, so that an unusable text is refused before calibration.
    observed = _observed_samples(job) if job.target.quantizes_all_activations else None
    return dataclasses.replace(_prepared(job, report), observed=observed)


def _observed_samples(job: Job) -> NDArray[np.int64]:
    return read_text(job.checkpoint.text, job.request.text, job.context).tokens[:OBSERVED]


def _prepared(job: Job, report: Report) -> Prepared:
    request, target = job.request, job.target
    if request.scales is not None:
        found = read_scales(job, request.scales)
        held_out = read_reference(job, found.text, report)
        return Prepared(checkpoint=found.checkpoint, target=found.target, record=found.record, held_out=held_out)
    if request.max_kl is None and not quantizes_anything(job.checkpoint, target):
        _refuse_calibration(job, f"{target.name} quantises nothing of {job.checkpoint.source}")
        return _rtn(job, report)
    algorithm = _choose_algorithm(job)
    if request.max_kl is not None:
        return _within_budget(job, algorithm, request.max_kl, report)
    if algorithm == "rtn" and target.input_type is None:
        return _rtn(job, report)
    return _calibrated(job, algorithm, report)


def _dummy(job: Job) -> Prepared:
    """Random weights, with one scale for all inputs."""
    if job.request.scales is not None:
        raise UsageError("--scales are for a model's weights, not for --dummy-weights: leave one of the two out")
    _refuse_calibration(job, "random weights cannot be calibrated")
    if job.request.max_kl is not None:
        raise UsageError("--max-kl is measured on a model's weights, not on --dummy-weights: leave one of the two out")
    if job.target.input_type is None:
        return Prepared(checkpoint=job.checkpoint, target=job.target)
    scale = DUMMY_RANGE / INPUT_TYPES[job.target.input_type].largest
    return Prepared(checkpoint=job.checkpoint, target=job.target, dummy_scale=scale)


def _rtn(job: Job, report: Report) -> Prepared:
    """Without calibration: the build quantises the weights to nearest."""
    return Prepared(
        checkpoint=job.checkpoint, target=job.target, held_out=read_reference(job, job.request.text, report)
    )


def _calibrated(job: Job, algorithm: str, report: Report) -> Prepared:
    text = _text(job, algorithm, report)
    layers = report.layers(job.checkpoint.config.num_hidden_layers)
    record, held_out = calibrate_checkpoint(
        job.checkpoint,
        job.target,
        algorithm,
        text,
        job.work,
        layers,
        reuse=True,
        simulate=job.target.fidelity_engine is None,
    )
    return _of_record(job, job.target, record, held_out if held_out.tokens.size else None, report)


def _within_budget(job: Job, algorithm: str, max_kl: float, report: Report) -> Prepared:
    if not quantizes_anything(job.checkpoint, job.target.with_higher_precision(frozenset())):
        raise UsageError(
            f"--max-kl needs something to quantise, {job.target.name} quantises nothing here: leave it out"
        )
    if job.request.text.fidelity_tokens == 0:
        raise UsageError("--max-kl is measured on held-out text, --fidelity-tokens is 0: give it some")
    text = _text(job, algorithm, report)
    found = calibrate_within(job.checkpoint, job.target, algorithm, text, job.work, max_kl, report)
    picture = job.work.with_name(job.work.name.removesuffix(".calibration.json") + ".sensitivity.png")
    report_sensitivities(found, job.checkpoint, max_kl, picture, report)
    return _of_record(job, found.target, found.record, found.held_out, report)


def _of_record(job: Job, target: Target, record: Record, held_out: HeldOut | None, report: Report) -> Prepared:
    if record.zero_channels:
        report.stage(f"{record.zero_channels} channels are zero on all of the calibration data: they stay zero")
    calibrated = CalibratedCheckpoint(job.checkpoint, record, job.work.parent)
    return Prepared(checkpoint=calibrated, target=target, record=record, held_out=held_out, is_new=True)


def _text(job: Job, algorithm: str, report: Report) -> CalibrationText:
    check_space_to_calibrate(job.checkpoint, job.target, job.request.text, job.context, job.work, bundle=True)
    text = calibration_text(job.checkpoint, job.target, job.request.text, job.context, job.work, report)
    report.stage(f"calibrating by {algorithm} on {text.tokens.size} tokens of {text.source}")
    return text


def _choose_algorithm(job: Job) -> str:
    request, target = job.request, job.target
    if request.algorithm is not None:
        return request.algorithm
    optional = target.input_type is None and target.algorithm != "rtn"
    if not optional or request.text.path is not None or request.max_kl is not None:
        return target.algorithm
    return "rtn" if job.checkpoint.text is None else target.algorithm


def _refuse_calibration(job: Job, reason: str) -> None:
    is_algorithm = job.request.algorithm not in (None, "rtn")
    if is_algorithm or job.request.text.path is not None:
        raise UsageError(f"{reason}: leave {'--algorithm' if is_algorithm else '--calib'} out")
