"""`--max-kl`: the smallest assignment of formats whose measured divergence is within a budget; knows no graph.

Sensitivities of projection groups rank which to keep in higher precision. The choice is then calibrated as a whole and
its divergence measured; where that is above the budget, more groups are chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import GROUPS
from megrez.calibration.results.record import Record
from megrez.calibration.sensitivity import report as sensitivity_report
from megrez.calibration.sensitivity.budget import Choice, choose_higher_precision, remaining
from megrez.calibration.sensitivity.measure import measure_sensitivity
from megrez.compile.calibrate.held_out import HeldOut, model_of
from megrez.compile.calibrate.stage import calibrate_checkpoint, discard, quantized_format_of
from megrez.compile.calibrate.text import CalibrationText
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.report import Report
from megrez.engines.targets import Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import UsageError

# Tokens that rank the groups; the result itself is measured on the held-out text.
PROBE_SAMPLES, PROBE_TOKENS = 2, 256
# The share of the budget to aim at: users' text differs from the measured text.
AIM = 0.85
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinBudget:
    """target: with its tensors in higher precision. divergences, higher_precision: by group, for the report."""

    target: Target
    record: Record
    held_out: HeldOut
    divergences: dict[str, float]
    higher_precision: frozenset[str]


def calibrate_within(
    checkpoint: Checkpoint,
    target: Target,
    algorithm: str,
    text: CalibrationText,
    path: Path,
    max_kl: float,
    report: Report,
) -> WithinBudget:
    """Calibrate with as few groups in higher precision as the budget allows.

    The divergence is measured on the text's held-out part. Raises UsageError where it is above the budget even with
    every group in higher precision.
    """
    layers = checkpoint.config.num_hidden_layers
    report.stage("sensitivity of every layer")
    divergences = _sensitivities(checkpoint, target, text, report.layers(layers))
    choices = {name: _choice(checkpoint, target, name, divergence) for name, divergence in divergences.items()}
    factor, best = 1.0, None
    lowest = 0.0
    for left in reversed(range(ROUNDS)):
        higher_precision = choose_higher_precision(choices, AIM * max_kl / factor) if left else frozenset(choices)
        mixed = target.with_higher_precision(_tensors(higher_precision))
        report.stage(f"{len(higher_precision)} of {len(choices)} projection groups in higher precision")
        record, held_out = calibrate_checkpoint(
            checkpoint, mixed, algorithm, text, path, report.layers(layers), reuse=True
        )
        assert record.fidelity is not None
        found, predicted = record.fidelity.kl_mean, remaining(choices, higher_precision)
        if found <= max_kl:
            best = WithinBudget(
                target=mixed,
                record=record,
                held_out=held_out,
                divergences=divergences,
                higher_precision=higher_precision,
            )
            break
        lowest = found
        if len(higher_precision) == len(choices):
            break
        factor = max(factor * 1.5, found / max(predicted, 1e-12))
    if best is None:
        discard(path)
        raise UsageError(
            f"--max-kl is {max_kl:g}, and {algorithm} for {target.name} reaches {lowest:.5f} with all projections in "
            "higher precision: raise it or choose a target of higher precision"
        )
    return best


def report_sensitivities(
    found: WithinBudget, checkpoint: Checkpoint, max_kl: float, picture: Path, report: Report
) -> None:
    """As a table in the report and as a PNG."""
    layers = checkpoint.config.num_hidden_layers
    report.stage("KL divergence of quantising each projection group alone, in millinats; *: higher precision")
    report.text(sensitivity_report.table(found.divergences, found.higher_precision, layers))
    title = f"{checkpoint.source}, {found.target.name}, KL at most {max_kl:g}"
    sensitivity_report.draw(found.divergences, found.higher_precision, layers, title, picture)
    report.stage(f"drawn in {picture}")


def _sensitivities(
    checkpoint: Checkpoint, target: Target, text: CalibrationText, progress: Callable[[int], None]
) -> dict[str, float]:
    """Measured with RTN: on so few tokens, GPTQ and smoothing would overfit."""
    length = min(PROBE_TOKENS, text.tokens.shape[1])
    tokens = np.ascontiguousarray(text.tokens[:PROBE_SAMPLES, :length])
    weight_format = quantized_format_of(checkpoint, target.with_higher_precision(frozenset()))
    recipe = Recipe(smoothing=None, gptq=False, input_type=target.input_type, weight_format=weight_format)
    return measure_sensitivity(model_of(checkpoint, length), tokens, recipe, progress)


def _choice(checkpoint: Checkpoint, target: Target, name: str, divergence: float) -> Choice:
    shapes = expected_tensors(checkpoint.config)
    weights = sum(shapes[tensor][0] * shapes[tensor][1] for tensor in _tensors({name}))
    high, low = _bits(target.higher_precision_format), _bits(target.weights)
    return Choice(name=name, divergence=divergence, bytes=weights * (high - low) // 8)


def _bits(weight_format: WeightFormat | None) -> int:
    return 32 if weight_format is None else weight_format.bits


def _tensors(groups: frozenset[str] | set[str]) -> frozenset[str]:
    """The names of these groups' matrices."""
    found = set[str]()
    for group in groups:
        prefix, _, short = group.rpartition(".")
        found |= {f"{prefix}.{name}.weight" for name in GROUPS[short]}
    return frozenset(found)
