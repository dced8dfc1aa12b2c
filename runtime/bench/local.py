"""Requests to an `LLM` of this process, timed in the engine's thread; and a session that notes its steps."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from megrez.runtime.bench.drive import Clock
from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.live import Live
from megrez.runtime.bench.work import Work
from megrez.runtime.bench.workload import Ask
from megrez.runtime.errors import MegrezError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Token
from megrez.runtime.session import Logits, Session


class LocalClient:
    """A Client over an LLM."""

    def __init__(
        self,
        llm: LLM,
        *,
        temperature: float,
        ignore_eos: bool,
        chat: bool,
        clock: Clock = time.perf_counter,
        live: Live | None = None,
    ) -> None:
        self._llm, self._clock, self._live = llm, clock, live or Live()
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
            self._live.tokens += 1
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
    """Sums over steps: decode are those in which every sequence gets one token, prefill all others.

    busy_tokens: the most that the sequences of one step held together after it.
    """

    decode: Work = field(default_factory=Work)
    prefill: Work = field(default_factory=Work)
    busy_tokens: int = 0


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
        self.note(began, self.clock(), tokens, starts, counts, np.size(logits_index))
        return logits

    def note(
        self, began: float, ended: float, tokens: ArrayLike, starts: ArrayLike, counts: ArrayLike | None, logits: int
    ) -> None:
        """A step from `began` to `ended`, in seconds of the clock, with these arguments."""
        cached, sequences = np.asarray(starts, np.int64), np.size(starts)
        new = np.full(sequences, np.size(tokens) // sequences) if counts is None else np.asarray(counts, np.int64)
        total = self.total
        work = total.decode if np.size(tokens) == sequences else total.prefill
        held = int((cached + new).sum())
        work.steps += 1
        work.seconds += ended - began
        work.sequences += sequences
        work.tokens += int(new.sum())
        work.cached_tokens += held
        work.pairs += int((new * cached + new * (new + 1) // 2).sum())
        work.logits += logits
        total.busy_tokens = max(total.busy_tokens, held)

    def copy(self, source: int, target: int, length: int) -> None:
        self.session.copy(source, target, length)

    def close(self) -> None:
        self.session.close()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.total = Steps()
