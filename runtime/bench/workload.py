"""The requests of a benchmark, drawn by seed: prompts, lengths and arrival times; independent of who answers them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megrez.runtime.bench.dataset import Sample
from megrez.runtime.bench.settings import DEFAULT_TOKENS, Load

# Independent streams of random numbers under one seed.
_LENGTHS, _IDS, _ARRIVALS = range(3)
WARMUP = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. prompt: token ids or text. at: seconds from the start of the repetition at which it is sent."""

    prompt: list[int] | str
    output_tokens: int
    at: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """vocab_size: random prompts have ids below it. samples: the dataset's prompts, in place of random ones.

    count_tokens: of an answer of the dataset; None where no tokenizer is at hand.
    """

    load: Load
    vocab_size: int
    samples: Sequence[Sample] = ()
    count_tokens: Callable[[str], int] | None = None

    def asks(self, repetition: int) -> Iterator[Ask]:
        """The requests of a repetition; without end if load.requests is None.

        Lengths and arrivals are the same in all repetitions. Random prompts differ, so that the KV cache holds none of
        them from an earlier repetition.
        """
        count = self.load.warmup if repetition == WARMUP else self.load.requests
        return itertools.islice(self._endless(repetition), count)

    def longest(self) -> int:
        """Tokens that the longest random prompt and its answer take together."""
        assert self.load.output_tokens is not None
        return self.load.prompt_tokens.high + self.load.output_tokens.high

    def _endless(self, repetition: int) -> Iterator[Ask]:
        seed, at = self.load.seed, 0.0
        lengths = np.random.default_rng([seed, _LENGTHS])
        ids = np.random.default_rng([seed, _IDS, repetition - WARMUP])
        arrivals = np.random.default_rng([seed, _ARRIVALS])
        for number in itertools.count():
            prompt_tokens = self.load.prompt_tokens.draw(lengths)
            sample = self.samples[number % len(self.samples)] if self.samples else None
            prompt = sample.prompt if sample else ids.integers(self.vocab_size, size=prompt_tokens).tolist()
            yield Ask(prompt=prompt, output_tokens=self._output_tokens(lengths, sample), at=at, seed=number)
            if self.load.request_rate is not None and repetition != WARMUP:
                at += float(arrivals.exponential(1 / self.load.request_rate))

    def _output_tokens(self, lengths: np.random.Generator, sample: Sample | None) -> int:
        span = self.load.output_tokens
        if span is not None:
            return span.draw(lengths)
        assert sample is not None
        if sample.output_tokens is not None:
            return sample.output_tokens
        if sample.answer is not None and self.count_tokens is not None:
            return max(1, self.count_tokens(sample.answer))
        return DEFAULT_TOKENS
