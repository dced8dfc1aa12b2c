"""A session that notes every step, and one request to an LLM that notes every token."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megrez.runtime.bench.local import MeteredSession
from megrez.runtime.bundle import Bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Token
from megrez.runtime.text import Text


@dataclass(frozen=True, slots=True)
class Step:
    """began, ended: seconds. counts: new tokens of each sequence."""

    began: float
    ended: float
    counts: tuple[int, ...]

    @property
    def is_decode(self) -> bool:
        return all(count == 1 for count in self.counts)

    @property
    def prompt_tokens(self) -> int:
        return sum(count for count in self.counts if count > 1)


@dataclass(slots=True, kw_only=True)
class NotedSession(MeteredSession):
    """Keeps every step; `close` does nothing: the session outlives the LLM over it."""

    steps: list[Step] = field(default_factory=list)

    def note(
        self, began: float, ended: float, tokens: ArrayLike, starts: ArrayLike, counts: ArrayLike | None, logits: int
    ) -> None:
        self.steps.append(Step(began, ended, tuple(np.asarray(counts).tolist())))

    def close(self) -> None:
        pass


@contextlib.contextmanager
def llm_over(bundle: Bundle, session: NotedSession) -> Iterator[LLM]:
    """An LLM with empty caches, as far as it knows."""
    text = Text.open(bundle)
    with LLM.over(bundle, session, text, ChatTemplate.open(bundle, text)) as llm:
        yield llm


class Stream:
    """A greedy request without a stop token, unless `params` say otherwise."""

    def __init__(self, llm: LLM, prompt_ids: list[int], max_tokens: int, **params: Any) -> None:
        self.prompt_ids, self.tokens, self.times = prompt_ids, list[Token](), list[float]()
        self._ended, self._error = threading.Event(), list[Exception]()
        self.began = threading.Event()
        self.sent = time.perf_counter()
        llm.submit(prompt_ids, SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params), self._take)

    def _take(self, found: Token | Exception) -> None:
        if isinstance(found, Exception):
            self._error.append(found)
            self._ended.set()
            return
        self.times.append(time.perf_counter())
        self.tokens.append(found)
        self.began.set()
        if found.finish_reason:
            self._ended.set()

    def wait(self) -> "Stream":
        self._ended.wait()
        if self._error:
            raise self._error[0]
        return self

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *(token.token for token in self.tokens)]

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self.sent

    @property
    def cached_tokens(self) -> int:
        return self.tokens[0].cached_tokens

    def gaps(self, after: float, before: float) -> list[float]:
        """Seconds between tokens; the later of both came in this time."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [late - early for early, late in pairs if after <= late <= before]


def random_ids(vocab_size: int, count: int, *seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(list(seed)).integers(vocab_size, size=count).tolist()
    return found


def percentile(values: Sequence[float], at: float) -> float:
    return float(np.percentile(values, at))
