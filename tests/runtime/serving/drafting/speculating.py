"""A session whose answers repeat themselves now and then, drafters that are right or wrong, and clients; not a test."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from megrez.runtime.batch import Batch
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.drafting.drafter import Draft, Wanted
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Request, Token
from megrez.runtime.session import FakeSession

VOCAB = 11


class Repetitive(FakeSession):
    """Logits follow from the last two tokens, and a little from all before them: a wrong one would show."""

    def __init__(self, *, slots: int, capacity: int = 96, vocab_size: int = VOCAB) -> None:
        super().__init__(vocab_size=vocab_size, slots=slots, capacity=capacity)
        self.rows: list[int] = []

    def step(self, *batch: Any, **named: Any) -> Any:
        read = Batch.of(*batch, named["slots"], named["counts"], max_slots=self.slots, capacity=self.capacity)
        logits = super().step(*batch, **named)
        self.rows.append(len(read.tokens))
        for row, (sequence, column) in enumerate(zip(read.owners, read.columns, strict=True)):
            context = self.cache[read.slots[sequence], : read.starts[sequence] + column + 1].tolist()
            logits[row] = self.logits_after(context)
        return logits

    def logits_after(self, context: Sequence[int]) -> np.ndarray:
        return _logits(tuple(context), self.vocab_size)


@functools.cache
def _logits(context: tuple[int, ...], vocab_size: int) -> np.ndarray:
    near = np.random.default_rng(context[-2:]).normal(size=vocab_size)
    far = np.random.default_rng([7, *context]).normal(size=vocab_size)
    return (3 * near + 0.5 * far).astype(np.float32)


class Fixed:
    """A Drafter that drafts `rule(ids)`, as many as are wanted."""

    expected = (0.5,)
    seconds = 0.0

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self.released: list[int] = []
        self.is_closed = False

    def prospects(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        return (0,) * min(most, len(self._rule(ids)))

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft]:
        return [self._rule(one.ids)[: one.count] for one in wanted]

    def release(self, slot: int) -> None:
        self.released.append(slot)

    def close(self) -> None:
        self.is_closed = True


def always(drafter: Any) -> Speculation:
    return Speculation(drafter, is_adaptive=False)


class Client:
    def __init__(self, engine: Engine, prompt: list[int], *, grammar: Any = None, **params: Any) -> None:
        self.heard: list[Token | Exception] = []
        self.request = Request(
            prompt_ids=prompt, params=SamplingParams(**params), sink=self.heard.append, grammar=grammar
        )
        engine.add(self.request)

    @property
    def story(self) -> list[Any]:
        """All that a client sees but timings and drafts, by sequence."""
        for one in self.heard:
            if isinstance(one, Exception):
                raise one
        tokens = [one for one in self.heard if isinstance(one, Token)]
        return [
            [
                (one.token, one.text, one.finish_reason, one.stop_reason, one.logprobs, one.prompt_logprobs)
                for one in tokens
                if one.index == index
            ]
            for index in range(self.request.params.n)
        ]

    @property
    def ids(self) -> list[int]:
        return [one.token for one in self.heard if isinstance(one, Token)]

    @property
    def last(self) -> Token:
        assert isinstance(self.heard[-1], Token)
        return self.heard[-1]


def drain(engine: Engine, most: int = 10_000) -> None:
    for _ in range(most):
        if engine.is_idle:
            return
        engine.step()
    raise AssertionError("the engine never became idle")
