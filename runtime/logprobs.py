"""Log-probabilities of tokens, from the raw logits of the model: before penalties and temperature."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """token: the sampled one, or the prompt's. rank: 1 for the most probable. top: the most probable, in order."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def top_logprobs(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    """From the logits [vocab_size] of one position, in float32 as torch's log_softmax; ties go to the smaller id."""
    shifted = logits - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
    best: NDArray[np.int64] = np.zeros(0, np.int64)
    if count:
        cut = np.partition(logprobs, -count)[-count]
        candidates = np.flatnonzero(logprobs >= cut)
        best = candidates[np.argsort(-logprobs[candidates], kind="stable")][:count]
    return TokenLogprobs(
        token=token,
        logprob=float(logprobs[token]),
        rank=1 + int((logprobs > logprobs[token]).sum()),
        top=tuple((int(one), float(logprobs[one])) for one in best),
    )
