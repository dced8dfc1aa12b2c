"""Requests to an `LLM` of this process, timed in the engine's thread; and a session that notes its steps."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from megrez.runtime.bench.drive import Clock
from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.workload import Ask
from megrez.runtime.errors import MegrezError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Token
from megrez.runtime.session import Logits, Session


class LocalClient:
    """A Client over an LLM."""

    def __init__(
        self, llm: LLM, *, temperature: float, ignore_eos: bool, chat: bool, clock: Clock = time.perf_counter
    ) -> None:
        self._llm, self._clock = llm, clock
        self._temperature, self._ignore_eos, self._chat = temperature, ignore_eos, chat

    async def send(self, ask: Ask) -> Record:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Token | Exception] = loop.create_future()
        times: list[float] = []

        def end(found: Token | Exception) -> None:
            if not ended.done():
                ended.set_result(found)

        def sink(found: Token | Exception) -> None:
            times.append(self._clock())
            if isinstance(found, Exception) or found.finish_reason:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(end, found)

        ids = self.prompt_ids(ask)
        sent = self._clock()
        try:
            request = self._llm.submit(ids, self._params(ask), sink)
        except MegrezError as error:
            return Record(sent=sent, done=self._clock(), error=str(error))
        try:
            last = await ended
        except asyncio.CancelledError:
            self._llm.cancel(request)
            raise
        if isinstance(last, Exception):
            return Record(sent=sent, done=times[-1], error=str(last))
        return Record(
            sent=sent,
            done=times[-1],
            times=tuple(times),
            prompt_tokens=len(ids),
            output_tokens=len(times),
            cached_tokens=last.cached_tokens,
        )

    def prompt_ids(self, ask: Ask) -> list[int]:
        if not isinstance(ask.prompt, str):
            return ask.prompt
        if self._chat:
            return self._llm.encode_chat([{"role": "user", "content": ask.prompt}])
        return self._llm.text.encode(ask.prompt)

    def _params(self, ask: Ask) -> SamplingParams:
        return SamplingParams(
            temperature=self._temperature, seed=ask.seed, max_tokens=ask.output_tokens, ignore_eos=self._ignore_eos
        )


@dataclass(slots=True)
class Steps:
    """Sums over steps. sequences, cached_tokens: of the decode steps, those in which every sequence gets one token."""

    steps: int = 0
    seconds: float = 0.0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    sequences: int = 0
    cached_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class MeteredSession:
    """A Session that passes everything on and sums up its steps."""

    session: Session
    clock: Clock = time.perf_counter
    total: Steps = field(default_factory=Steps)

    @property
    def slots(self) -> int:
        return self.session.slots

    @property
    def capacity(self) -> int:
        return self.session.capacity

    @property
    def vocab_size(self) -> int:
        return self.session.vocab_size

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        began = self.clock()
        logits = self.session.step(tokens, starts, logits_index, slots=slots, counts=counts)
        self.note(began, self.clock(), tokens, starts, counts)
        return logits

    def note(self, began: float, ended: float, tokens: ArrayLike, starts: ArrayLike, counts: ArrayLike | None) -> None:
        """A step from `began` to `ended`, in seconds of the clock, with these arguments."""
        total = self.total
        total.steps += 1
        total.seconds += ended - began
        if np.size(tokens) == np.size(starts):
            total.decode_steps += 1
            total.decode_seconds += ended - began
            total.sequences += np.size(starts)
            total.cached_tokens += int(np.sum(starts)) + np.size(starts)

    def copy(self, source: int, target: int, length: int) -> None:
        self.session.copy(source, target, length)

    def close(self) -> None:
        self.session.close()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.total = Steps()
