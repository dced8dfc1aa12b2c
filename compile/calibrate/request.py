"""The options of calibration, and the job that it is part of; knows no algorithm."""

from dataclasses import dataclass
from pathlib import Path

from megrez.compile.calibrate.text import TextRequest
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.engines.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """algorithm: a key of ALGORITHMS; None takes the target's own, or RTN (see megrez.compile.calibrate.prepare).

    scales: those of an earlier calibration, instead of a new one. max_kl: the largest mean divergence, in nats, for
    which weights are kept in higher precision. weights: "checkpoint" or "dummy".
    """

    text: TextRequest
    weights: str = "checkpoint"
    algorithm: str | None = None
    scales: Path | None = None
    max_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """context: of the bundle, in tokens. work: the JSON of unfinished calibrations; their other files are beside it."""

    checkpoint: Checkpoint
    target: Target
    request: CalibrationRequest
    context: int
    work: Path
