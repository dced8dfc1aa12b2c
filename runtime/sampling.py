"""From the logits of one position to a token id; independent of model and text.

Order and definitions follow transformers: logit bias (first, as in vLLM), repetition penalty, presence and frequency
penalties (as OpenAI and vLLM define them), temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.logprobs import TokenLogprobs, top_logprobs
from megrez.runtime.manifest import SAMPLING_BOUNDS, SamplingDefaults
from megrez.runtime.stops import StopStrings

Scores = NDArray[np.float32]
# OpenAI's limit, and vLLM's default one.
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy, without penalties.

    temperature: 0 takes the most probable token. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repetition_penalty: over prompt and output, 1 is off.
    presence_penalty, frequency_penalty: over the output only, 0 is off.
    seed: None is random; with n > 1, sequence i uses seed + i.
    logit_bias: token id → value added to its logit before all else, -100 to 100, as OpenAI's.
    n: sequences to generate per prompt. max_tokens: None generates to the end of the context. min_tokens: no stop token
    is sampled before this many tokens. stop: strings that end the text and are left out of it. stop_token_ids: in
    addition to the model's own stop tokens, which ignore_eos turns off.
    logprobs, prompt_logprobs: how many of the most probable tokens to report with each token; None reports nothing.
    guided: a constraint on the answer's text, for LLM only. A complete answer ends, whatever min_tokens and ignore_eos
    are.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guided: Guided | None = None

    def __post_init__(self) -> None:
        wanted = {f"{name} {bound.rule}": bound.holds(getattr(self, name)) for name, bound in SAMPLING_BOUNDS.items()}
        wanted |= {
            "presence_penalty from -2 to 2": -2 <= self.presence_penalty <= 2,
            "frequency_penalty from -2 to 2": -2 <= self.frequency_penalty <= 2,
            "seed of 0 or more": self.seed is None or self.seed >= 0,
            "logit_bias of token ids from 0 and values from -100 to 100": all(
                token >= 0 and math.isfinite(value) and -100 <= value <= 100
                for token, value in (self.logit_bias or {}).items()
            ),
            "n of 1 or more": self.n >= 1,
            "max_tokens of 1 or more": self.max_tokens is None or self.max_tokens >= 1,
            "min_tokens from 0 to max_tokens": 0 <= self.min_tokens <= (self.max_tokens or self.min_tokens),
            "logprobs from 0 to 20": self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
            "prompt_logprobs from 0 to 20": self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MOST_LOGPROBS,
        }
        faults = [rule for rule, holds in wanted.items() if not holds]
        if faults:
            given = ", ".join(f"{rule.split()[0]}={getattr(self, rule.split()[0])}" for rule in faults)
            raise UsageError(f"sampling cannot use {given}: give a {', a '.join(faults)}")
        StopStrings(self.stops)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple; a single one may be given as a str."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def from_defaults(cls, defaults: SamplingDefaults) -> "SamplingParams":
        """What the model's authors recommend, from the manifest."""
        return cls(
            temperature=defaults.temperature,
            top_k=defaults.top_k,
            top_p=defaults.top_p,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
        )


class Sampler:
    """Samples the tokens of one sequence, and counts them for the penalties."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, *, index: int = 0) -> None:
        """index: which of the params.n sequences of one prompt this is."""
        self._params = params
        self._random = np.random.default_rng(None if params.seed is None else params.seed + index)
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[np.asarray(prompt_ids, np.int64)] = True
        self._counts = np.zeros(vocab_size, np.int32)
        bias = params.logit_bias or {}
        if unknown := [token for token in bias if token >= vocab_size]:
            raise UsageError(
                f"logit_bias names token id {unknown[0]}, the vocabulary has {vocab_size}: give ids below that"
            )
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))

    def next(
        self, logits: Scores, *, blocked: Collection[int] = (), allowed: NDArray[np.bool_] | None = None
    ) -> tuple[int, TokenLogprobs | None]:
        """The next token for `logits` [vocab_size], and its log-probabilities if params.logprobs is set."""
        token = self.pick(logits, blocked=blocked, allowed=allowed)
        count = self._params.logprobs
        return token, None if count is None else top_logprobs(logits, token, count)

    def pick(self, logits: Scores, *, blocked: Collection[int] = (), allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token for `logits` [vocab_size], which are not modified; never one of `blocked`.

        allowed: [vocab_size] mask of the permitted tokens; None permits all.
        Raises EngineError if the logits contain NaN.
        """
        if len(self._bias_ids):
            logits = logits.copy()
            logits[self._bias_ids] += self._bias
        scores = penalized(logits, self._params, seen=self._seen, counts=self._counts)
        if blocked:
            scores = scores.copy()
            scores[list(blocked)] = -np.inf
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        # argmax() finds NaN if any score is, so the largest alone checks all of them.
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise EngineError("the engine returned logits without a finite maximum: try another target, and report it")
        token = best if self._params.temperature == 0 else self._draw(scores)
        self._seen[token] = True
        self._counts[token] += 1
        return token

    def _draw(self, scores: Scores) -> int:
        ids, weights = candidates(scores, self._params)
        mass = np.cumsum(weights, dtype=np.float64)
        at = np.searchsorted(mass, self._random.random() * mass[-1], side="right")
        return int(ids[min(int(at), len(ids) - 1)])


def penalized(logits: Scores, params: SamplingParams, *, seen: NDArray[np.bool_], counts: NDArray[np.int32]) -> Scores:
    """`logits` after the three penalties; the same array if none is on.

    seen: [V] whether the prompt or the output contains the token. counts: [V] occurrences in the output.
    """
    scores = logits
    if params.repetition_penalty != 1:
        ids = np.flatnonzero(seen)
        scores = logits.copy()
        chosen = scores[ids]
        scores[ids] = np.where(chosen < 0, chosen * params.repetition_penalty, chosen / params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        ids = np.flatnonzero(counts)
        scores = scores.copy()
        scores[ids] -= params.frequency_penalty * counts[ids] + params.presence_penalty
    return scores


def candidates(scores: Scores, params: SamplingParams) -> tuple[NDArray[np.int64], Scores]:
    """The ids that may be drawn and their weights, the largest of which is 1; temperature must not be 0."""
    # Subtracting the maximum first avoids overflow at tiny temperatures, and does not change the softmax.
    scaled = (scores - scores.max()) / np.float32(max(params.temperature, 1e-30))
    ids = _top_k(scaled, params.top_k) if 0 < params.top_k < len(scaled) else np.arange(len(scaled))
    weights = np.exp(scaled[ids])
    if params.top_p < 1:
        kept = _top_p(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0:
        likely = weights >= params.min_p
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _top_k(scaled: Scores, k: int) -> NDArray[np.int64]:
    """All ids whose score is at least the k-th largest: ties are kept, as in transformers."""
    cut = len(scaled) - k
    return np.flatnonzero(scaled >= np.partition(scaled, cut)[cut])


def _top_p(weights: Scores, top_p: float) -> NDArray[np.int64]:
    """The fewest positions, largest weight first, whose weights sum to at least `top_p` of the total."""
    goal = top_p * float(weights.sum(dtype=np.float64))
    # Most distributions are peaked: a few large weights reach top_p, and only those need sorting.
    for floor in (1e-2, 1e-4, 0.0):
        heavy = np.flatnonzero(weights >= floor)
        if float(weights[heavy].sum(dtype=np.float64)) >= goal:
            break
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    mass = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(mass, goal)) + 1]
