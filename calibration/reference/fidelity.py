"""KL divergence, perplexity and top-1 agreement of a session against a reference on the same text; knows no file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts
from megrez.runtime.manifest import Fidelity
from megrez.runtime.session import Session

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Logits of a step, 32 MB a model: graphs for other engines dequantise their weights in each.
STEP_LOGITS = 1 << 23
# Positions that a thread compares at a time: at vocabulary 122880, 8 of two models take 16 MB in float64.
COMPARED_POSITIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position:
    """Comparisons at consecutive positions, [N] each; negative log-likelihoods only where there is a next token."""

    kl: Float64
    agree: NDArray[np.bool_]
    loss: Float64
    reference_loss: Float64


def measure_fidelity(
    session: Session,
    reference: Session,
    tokens: NDArray[np.int64],
    *,
    window: int = 512,
    progress: Callable[[int], None] = lambda positions: None,
) -> Fidelity:
    """Compare at each of `tokens` [N], in windows of `window` tokens that each start with an empty cache.

    A window's last position has no next token, so it counts for KL and agreement, not for perplexity. Only slot 0 of
    each session is used. `progress` is called with the number of positions just compared. KL is in nats.
    """
    parts: list[_Position] = []
    for start in range(0, len(tokens), window):
        for part in _compare_window(session, reference, tokens[start : start + window]):
            parts.append(part)
            progress(len(part.kl))
    kl = np.concatenate([part.kl for part in parts])
    return Fidelity(
        perplexity=float(np.exp(np.concatenate([part.loss for part in parts]).mean())),
        reference_perplexity=float(np.exp(np.concatenate([part.reference_loss for part in parts]).mean())),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        top1_agreement=float(np.concatenate([part.agree for part in parts]).mean()),
        tokens=len(kl),
    )


def measure_perplexity(
    session: Session,
    tokens: NDArray[np.int64],
    *,
    window: int = 512,
    progress: Callable[[int], None] = lambda positions: None,
) -> float:
    """Of `tokens` [N], in the same windows as measure_fidelity; no reference is needed."""
    losses: list[Float64] = []
    step = _step_positions(session)
    for first in range(0, len(tokens), window):
        own = tokens[first : first + window]
        for start in range(0, len(own), step):
            piece, next_tokens = own[start : start + step], own[start + 1 : start + 1 + step]
            losses += _losses(session.step(piece, [start], np.arange(len(piece))), next_tokens)
            progress(len(piece))
    return float(np.exp(np.concatenate(losses).mean()))


def _step_positions(session: Session) -> int:
    return max(1, STEP_LOGITS // session.vocab_size)


def _losses(logits: Float32, next_tokens: NDArray[np.int64]) -> list[Float64]:
    """Negative log-likelihoods of next_tokens [N] by logits [N or more, vocab_size], in parts."""

    def compute(part: slice) -> Float64:
        expected = next_tokens[part]
        return -log_softmax(logits[part])[np.arange(len(expected)), expected]

    return in_parts(len(next_tokens), COMPARED_POSITIONS, compute)


def _compare_window(session: Session, reference: Session, tokens: NDArray[np.int64]) -> Iterator[_Position]:
    step = _step_positions(session)
    for start in range(0, len(tokens), step):
        piece = tokens[start : start + step]
        logits_index = np.arange(len(piece))
        model, truth = (one.step(piece, [start], logits_index) for one in (session, reference))
        yield from _compare(model, truth, tokens[start + 1 : start + 1 + step])


def _compare(model: Float32, truth: Float32, next_tokens: NDArray[np.int64]) -> list[_Position]:
    """Of logits [N, vocab_size] each, in parts. next_tokens: [N], or [N - 1] at the end of the text."""

    def compute(part: slice) -> _Position:
        own, expected = log_softmax(model[part]), log_softmax(truth[part])
        following = next_tokens[part]
        positions = np.arange(len(following))
        return _Position(
            kl=(np.exp(expected) * (expected - own)).sum(axis=-1),
            agree=expected.argmax(axis=-1) == own.argmax(axis=-1),
            loss=-own[positions, following],
            reference_loss=-expected[positions, following],
        )

    return in_parts(len(model), COMPARED_POSITIONS, compute)


def log_softmax(logits: Float32) -> Float64:
    """Over the last axis, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x
