"""`--max-kl`: the cheapest assignment of formats whose measured divergence is within a budget; knows no graph.

Sensitivities of single projection groups say which to keep finer first; what all of the choice costs together is
measured by calibrating with it, and the choice is corrected by what was found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import GROUPS
from megrez.calibration.results.record import Record
from megrez.calibration.sensitivity import report as sensitivity_report
from megrez.calibration.sensitivity.budget import Choice, choose_finer, remaining
from megrez.calibration.sensitivity.measure import measure_sensitivity
from megrez.compile.calibrate.held_out import HeldOut, model_of
from megrez.compile.calibrate.stage import calibrate_checkpoint, discard, rounded_form
from megrez.compile.calibrate.text import CalibrationText
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.report import Report
from megrez.engines.targets import Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import UsageError

# Tokens that rank the groups; the result itself is measured on the held-out text.
PROBE_SAMPLES, PROBE_TOKENS = 2, 256
# The share of the budget that is aimed at: the text that is measured is not the text that will be read.
AIM = 0.85
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinBudget:
    """target: with its finer tensors. divergences, finer: by projection group, for the report."""

    target: Target
    record: Record
    held_out: HeldOut
    divergences: dict[str, float]
    finer: frozenset[str]


def calibrate_within(
    checkpoint: Checkpoint,
    target: Target,
    algorithm: str,
    text: CalibrationText,
    path: Path,
    max_kl: float,
    report: Report,
) -> WithinBudget:
    """Calibrate with as few finer groups as the budget allows.

    Raises UsageError when even with every group finer the divergence is above the budget. It is measured on the text's
    held-out part.
    """
    layers = checkpoint.config.num_hidden_layers
    report.stage("sensitivity of every layer")
    divergences = _sensitivities(checkpoint, target, text, report.layers(layers))
    choices = {name: _choice(checkpoint, target, name, divergence) for name, divergence in divergences.items()}
    factor, best = 1.0, None
    lowest = 0.0
    for left in reversed(range(ROUNDS)):
        finer = choose_finer(choices, AIM * max_kl / factor) if left else frozenset(choices)
        mixed = target.with_finer(_tensors(finer))
        report.stage(f"{len(finer)} of {len(choices)} projection groups finer")
        record, held_out = calibrate_checkpoint(
            checkpoint, mixed, algorithm, text, path, report.layers(layers), reuse=True
        )
        assert record.fidelity is not None
        found, predicted = record.fidelity.kl_mean, remaining(choices, finer)
        if found <= max_kl:
            best = WithinBudget(target=mixed, record=record, held_out=held_out, divergences=divergences, finer=finer)
            break
        lowest = found
        if len(finer) == len(choices):
            break
        factor = max(factor * 1.5, found / max(predicted, 1e-12))
    if best is None:
        discard(path)
        raise UsageError(
            f"--max-kl is {max_kl:g}, and {algorithm} for {target.name} came down to {lowest:.5f} with its finest "
            "formats: raise it or choose a finer target"
        )
    return best


def report_sensitivities(
    found: WithinBudget, checkpoint: Checkpoint, max_kl: float, picture: Path, report: Report
) -> None:
    """As a table in the report and as a PNG."""
    layers = checkpoint.config.num_hidden_layers
    report.stage("KL divergence of quantising each projection group alone, in millinats; * stays finer")
    report.text(sensitivity_report.table(found.divergences, found.finer, layers))
    title = f"{checkpoint.source}, {found.target.name}, KL at most {max_kl:g}"
    sensitivity_report.draw(found.divergences, found.finer, layers, title, picture)
    report.stage(f"drawn in {picture}")


def _sensitivities(
    checkpoint: Checkpoint, target: Target, text: CalibrationText, progress: Callable[[int], None]
) -> dict[str, float]:
    """Ranked with RTN: on so few tokens anything that is fitted would look better than it is."""
    length = min(PROBE_TOKENS, text.tokens.shape[1])
    tokens = np.ascontiguousarray(text.tokens[:PROBE_SAMPLES, :length])
    coarse = rounded_form(checkpoint, target.with_finer(frozenset()))
    recipe = Recipe(smoothing=None, gptq=False, input_type=target.inputs, weight_format=coarse)
    return measure_sensitivity(model_of(checkpoint, length), tokens, recipe, progress)


def _choice(checkpoint: Checkpoint, target: Target, name: str, divergence: float) -> Choice:
    shapes = expected_tensors(checkpoint.config)
    weights = sum(shapes[tensor][0] * shapes[tensor][1] for tensor in _tensors({name}))
    fine, coarse = _bits(target.finer_format), _bits(target.weights)
    return Choice(name=name, divergence=divergence, bytes=weights * (fine - coarse) // 8)


def _bits(form: WeightFormat | None) -> int:
    return 32 if form is None else form.bits


def _tensors(groups: frozenset[str] | set[str]) -> frozenset[str]:
    """The names of these groups' matrices."""
    found = set[str]()
    for group in groups:
        prefix, _, short = group.rpartition(".")
        found |= {f"{prefix}.{name}.weight" for name in GROUPS[short]}
    return frozenset(found)
