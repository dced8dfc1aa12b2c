"""What a benchmark under load asks for; reads no file and imports no library."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_TOKENS = 128
REPEAT = 3
REQUESTS_PER_STREAM = 8
# Deviations from the mean at which a normal distribution is cut off.
CUT = 4


@dataclass(frozen=True, slots=True)
class Span:
    """A number of tokens, drawn uniformly from low to high, both included; with a mean and a deviation from a normal
    distribution, whose tails beyond low and high are cut off.
    """

    low: int
    high: int
    mean: int | None = None
    deviation: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Of "128", "64:256" or "128~32"; raises UsageError for anything else, and for less than one token."""
        try:
            found = cls._normal(text) if "~" in text else cls._uniform(text)
        except ValueError:
            found = cls(0, 0)
        if not 1 <= found.low <= found.high:
            raise UsageError(
                f"{text} is no number of tokens: give one as 128, a range as 64:256, or mean and deviation as 128~32"
            )
        return found

    @classmethod
    def _uniform(cls, text: str) -> "Span":
        low, _, high = text.partition(":")
        return cls(int(low), int(high or low))

    @classmethod
    def _normal(cls, text: str) -> "Span":
        mean, deviation = (int(part) for part in text.split("~"))
        if mean < 1 or deviation < 1:
            return cls(0, 0)
        return cls(max(1, mean - CUT * deviation), mean + CUT * deviation, mean, deviation)

    @property
    def is_fixed(self) -> bool:
        return self.low == self.high

    def draw(self, random: "np.random.Generator") -> int:
        if self.mean is None or self.deviation is None:
            return int(random.integers(self.low, self.high + 1))
        return min(max(round(random.normal(self.mean, self.deviation)), self.low), self.high)

    def __str__(self) -> str:
        if self.mean is not None:
            return f"{self.mean}~{self.deviation}"
        return str(self.low) if self.is_fixed else f"{self.low}:{self.high}"


def parse_counts(text: str) -> tuple[int, ...]:
    """Of "1,2,4"; raises UsageError for anything but numbers of 1 or more."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"{text} is no list of numbers: give one as 1,2,4")
    return found


def parse_depths(text: str) -> tuple[float, ...]:
    """Shares of "0,50,100", which are per cent; raises UsageError."""
    try:
        found = tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= one <= 1 for one in found):
        raise UsageError(f"{text} is no list of depths: give per cent of the prompt as 0,50,100")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests of a benchmark and how they arrive.

    requests: per repetition; None goes on for duration_s seconds. concurrency: most requests in flight, None for any
    number. request_rate: arrivals per second of a Poisson process; None sends a request as soon as another ends.
    dataset: a file of prompts in place of random ones. chat: each prompt is a user's message. output_tokens: None takes
    the length of the dataset's own answers. warmup: requests before the first repetition, which count in no figure.
    """

    requests: int | None = None
    duration_s: float | None = None
    concurrency: int | None = 1
    request_rate: float | None = None
    prompt_tokens: Span = field(default_factory=lambda: Span(DEFAULT_TOKENS, DEFAULT_TOKENS))
    output_tokens: Span | None = field(default_factory=lambda: Span(DEFAULT_TOKENS, DEFAULT_TOKENS))
    dataset: Path | None = None
    chat: bool = False
    ignore_eos: bool = True
    temperature: float = 0.0
    warmup: int = 1
    repeat: int = REPEAT
    seed: int = 0
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.requests is None and self.duration_s is None:
            raise UsageError("the benchmark has no end: give --requests or --duration")
        if self.concurrency is None and self.request_rate is None:
            raise UsageError("all requests would be sent at once: give --concurrency or --request-rate")
        if self.chat and self.dataset is None:
            raise UsageError("--chat sends texts, and random prompts are token ids: give --dataset too")

    @property
    def all_requests(self) -> int | None:
        """Of all repetitions; None if they end by time."""
        return None if self.requests is None else self.requests * self.repeat

    def describe(self) -> dict[str, Any]:
        """What two runs must have in common to be compared, for JSON."""
        return {
            "preset": self.preset,
            "requests": self.requests,
            "duration_s": self.duration_s,
            "concurrency": self.concurrency,
            "request_rate": self.request_rate,
            "prompt_tokens": None if self.dataset else str(self.prompt_tokens),
            "output_tokens": None if self.output_tokens is None else str(self.output_tokens),
            "dataset": None if self.dataset is None else self.dataset.name,
            "chat": self.chat,
            "ignore_eos": self.ignore_eos,
            "temperature": self.temperature,
            "warmup": self.warmup,
            "seed": self.seed,
        }
