"""What a build starts from: the checkpoint as it is or as calibration leaves it, and the text to judge it by."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import INPUT_TYPES
from megrez.calibration.results.record import Record, check_hashes, read_record
from megrez.calibration.sensitivity import report as sensitivity_report
from megrez.compile.calibrate.held_out import HeldOut, read_held_out
from megrez.compile.calibrate.self_generated import calibration_text
from megrez.compile.calibrate.stage import calibrate_checkpoint, rounded_form, rounds_anything
from megrez.compile.calibrate.text import CalibrationText, TextRequest, read_text
from megrez.compile.calibrate.text_records import default_name
from megrez.compile.calibrate.within_budget import calibrate_within
from megrez.compile.checkpoint.calibrated import CalibratedCheckpoint
from megrez.compile.checkpoint.derived import file_of
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors, parameter_count
from megrez.compile.graph.precision import EMBEDDING, HEAD
from megrez.compile.graph.quantizer import block_format_of
from megrez.compile.report import Progress, Report
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError

# Random weights have nothing to say about a text: what norms give has a deviation of 1, and all inputs get its range.
DUMMY_RANGE = 8.0
# Parameters up to which a model is calibrated unasked where only its quality needs it: half an hour on two cores.
CALIBRATED_UNASKED = 1_000_000_000
# Samples of the calibration text on which the ranges of values are seen.
OBSERVED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """algorithm: a key of ALGORITHMS; None takes the target's own, or rounds to nearest (see Preparation).

    scales: those of an earlier calibration, in place of a new one. max_kl: keep as much of the model finer as this mean
    divergence, in nats, asks for. weights: "checkpoint" or "dummy".
    """

    text: TextRequest
    weights: str = "checkpoint"
    algorithm: str | None = None
    scales: Path | None = None
    max_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """target: the one asked for, with the tensors that a budget keeps finer. record: None where nothing was calibrated.

    held_out: None where fidelity is not to be measured. dummy_scale: of all inputs, where weights are random. observed:
    samples [S, T] of the text, to see the ranges of values on; None where the target has no use for them.
    """

    checkpoint: Checkpoint
    target: Target
    record: Record | None = None
    held_out: HeldOut | None = None
    dummy_scale: float | None = None
    observed: NDArray[np.int64] | None = None

    def input_scale(self, name: str) -> float | None:
        """See megrez.compile.graph.dialects.lower."""
        found = self.checkpoint.input_scale(name) if isinstance(self.checkpoint, CalibratedCheckpoint) else None
        return self.dummy_scale if found is None else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Calibrates where the target asks for it. work: where its JSON goes, files beside it; see `discard`.

    Where rounding to nearest is possible, a checkpoint without a tokenizer gets it unless a calibration is asked for,
    and so do models of more than CALIBRATED_UNASKED parameters on ONNX Runtime's targets.
    """

    checkpoint: Checkpoint
    target: Target
    request: CalibrationRequest
    context: int
    work: Path
    report: Report

    def run(self) -> Prepared:
        """Raises UsageError for a request that cannot be met, CheckpointError for weights that are no numbers."""
        if not self.target.observes or self.request.weights == "dummy":
            return self._prepare()
        text = read_text(self.checkpoint.text, self.request.text, self.context)
        return dataclasses.replace(self._prepare(), observed=text.tokens[:OBSERVED])

    def _prepare(self) -> Prepared:
        request, target = self.request, self.target
        if request.scales is not None:
            return self._from_scales(request.scales)
        if request.weights == "dummy":
            self._refuse_calibration("random weights have nothing to learn from a text")
            return self._dummy()
        if request.max_kl is None and not rounds_anything(self.checkpoint, target):
            self._refuse_calibration(f"{target.name} rounds nothing of {self.checkpoint.source}")
            return self._to_nearest()
        algorithm = self._algorithm()
        if request.max_kl is not None:
            return self._within_budget(algorithm, request.max_kl)
        if algorithm == "rtn" and target.inputs is None:
            return self._to_nearest()
        text = self._text(algorithm)
        record, held_out = calibrate_checkpoint(
            self.checkpoint, target, algorithm, text, self.work, self._layers(), reuse=True
        )
        return self._prepared(target, record, held_out if held_out.tokens.size else None)

    def _refuse_calibration(self, why: str) -> None:
        asked = self.request.algorithm not in (None, "rtn")
        if asked or self.request.text.path is not None:
            raise UsageError(f"{why}: leave {'--algorithm' if asked else '--calib'} out")

    def _algorithm(self) -> str:
        request, target = self.request, self.target
        if request.algorithm is not None:
            return request.algorithm
        optional = target.inputs is None and target.algorithm != "rtn"
        if not optional or request.text.path is not None or request.max_kl is not None:
            return target.algorithm
        if self.checkpoint.text is None:
            return "rtn"
        parameters = parameter_count(self.checkpoint.config)
        if target.dialect != "ort" or parameters <= CALIBRATED_UNASKED:
            return target.algorithm
        self.report.stage(
            f"rounding {parameters / 1e9:.1f} billion parameters to nearest, in minutes; "
            f"--algorithm {target.algorithm} takes much longer and stays nearer to the checkpoint"
        )
        return "rtn"

    def _to_nearest(self) -> Prepared:
        """The build rounds what there is to round; no text is needed for that."""
        return Prepared(checkpoint=self.checkpoint, target=self.target, held_out=self._held_out(self.request.text))

    def _from_scales(self, scales: Path) -> Prepared:
        record = read_record(scales)
        if record.target != self.target.name:
            raise UsageError(f"{scales} was calibrated for {record.target}, not {self.target.name}: calibrate for it")
        if record.model_sha256 != self.checkpoint.fingerprint():
            raise UsageError(
                f"{scales} belongs to another model ({record.model}, SHA-256 {record.model_sha256[:12]}…) than "
                f"{self.checkpoint.source}: calibrate this one with  megrez calibrate"
            )
        check_hashes(record, scales.parent)
        own, text = record.text, self.request.text
        if own.source == (default_name() if text.path is None else text.path.name):
            # Cut as it was for the calibration, so that nothing is judged by what it learned.
            text = dataclasses.replace(text, samples=own.samples, length=own.tokens, seed=own.seed)
        target = self.target if record.finer is None else self.target.with_finer(frozenset(record.finer))
        calibrated = CalibratedCheckpoint(self.checkpoint, record, scales.parent)
        self._check_formats(scales, calibrated, target)
        return Prepared(checkpoint=calibrated, target=target, record=record, held_out=self._held_out(text))

    def _check_formats(self, scales: Path, calibrated: CalibratedCheckpoint, target: Target) -> None:
        """Rounded anew, a matrix would lose its calibration, and its smoothing alone."""
        form, shapes = rounded_form(self.checkpoint, target), expected_tensors(self.checkpoint.config)
        for name, shape in shapes.items():
            looked_up = name == EMBEDDING and HEAD[0] in shapes
            wanted = form(name) if len(shape) == 2 and not looked_up else None
            if wanted is not None and calibrated.block_format(name) != block_format_of(wanted, shape[1]):
                raise UsageError(
                    f"{scales} does not hold {name} as {wanted}: leave --block-size out, give --quantize-head where it "
                    "was calibrated with it and nowhere else, or calibrate again"
                )

    def _dummy(self) -> Prepared:
        if self.request.max_kl is not None:
            raise UsageError("--max-kl measures a model's answers, random weights have none: leave one of the two out")
        if self.target.inputs is None:
            return Prepared(checkpoint=self.checkpoint, target=self.target)
        scale = DUMMY_RANGE / INPUT_TYPES[self.target.inputs].largest
        return Prepared(checkpoint=self.checkpoint, target=self.target, dummy_scale=scale)

    def _within_budget(self, algorithm: str, max_kl: float) -> Prepared:
        if not rounds_anything(self.checkpoint, self.target.with_finer(frozenset())):
            raise UsageError(f"--max-kl needs something to round, {self.target.name} rounds nothing here: leave it out")
        if self.request.text.fidelity_tokens == 0:
            raise UsageError("--max-kl is measured on held-out text, --fidelity-tokens is 0: give it some")
        text = self._text(algorithm)
        found = calibrate_within(self.checkpoint, self.target, algorithm, text, self.work, max_kl, self._stage)
        layers = self.checkpoint.config.num_hidden_layers
        self.report.stage(
            "what quantising each projection group alone costs, in millinats of KL divergence; * stays finer"
        )
        self.report.text(sensitivity_report.table(found.divergences, found.finer, layers))
        picture = self.work.with_name(self.work.name.removesuffix(".calibration.json") + ".sensitivity.png")
        title = f"{self.checkpoint.source}, {self.target.name}, KL at most {max_kl:g}"
        sensitivity_report.draw(found.divergences, found.finer, layers, title, picture)
        self.report.stage(f"drawn in {picture}")
        return self._prepared(found.target, found.record, found.held_out)

    def _prepared(self, target: Target, record: Record, held_out: HeldOut | None) -> Prepared:
        if record.zero_channels:
            self.report.stage(f"{record.zero_channels} channels are zero throughout: they stay zero")
        calibrated = CalibratedCheckpoint(self.checkpoint, record, self.work.parent)
        return Prepared(checkpoint=calibrated, target=target, record=record, held_out=held_out)

    def _held_out(self, request: TextRequest) -> HeldOut | None:
        """None for unrounded weights, which the graph's own tests hold, and where no CPU or no text is to judge by."""
        judged = self.target.runs_here or self.target.half
        wanted = self.request.weights == "checkpoint" and self.target.weights is not None and judged
        if not wanted or self.checkpoint.text is None or request.fidelity_tokens == 0:
            return None
        text = read_text(self.checkpoint.text, request, self.context)
        self.report.stage(f"reading {text.held_out.size} tokens of {text.held_out_source} with the exact model")
        # As its file has it: the same model, with nothing to turn.
        return read_held_out(file_of(self.checkpoint), text, self._layers())

    def _text(self, algorithm: str) -> CalibrationText:
        request = self.request.text
        text = calibration_text(self.checkpoint, self.target, request, self.context, self.work, self.report)
        self.report.stage(f"calibrating by {algorithm} on {text.tokens.size} tokens of {text.source}")
        return text

    def _stage(self, name: str) -> Progress:
        self.report.stage(name)
        return self._layers()

    def _layers(self) -> Progress:
        return self.report.layers(self.checkpoint.config.num_hidden_layers)
