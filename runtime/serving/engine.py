"""The decode loop: in-flight batching of many sequences over one session; independent of bundles and threads.

Requests join and leave between steps. The output of a sequence depends on its own tokens only.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import numpy as np

from megrez.runtime.errors import MegrezError, UsageError
from megrez.runtime.logprobs import TokenLogprobs, top_logprobs
from megrez.runtime.sampling import Sampler, Scores
from megrez.runtime.serving.guided import Allowed
from megrez.runtime.serving.request import Generation, Request, Token
from megrez.runtime.serving.scheduler import Planned, plan_step
from megrez.runtime.serving.slots import SlotPool
from megrez.runtime.serving.text_stream import FinishReason, TextStream, TokenText
from megrez.runtime.session import Logits, Session
from megrez.runtime.stops import StopStrings

# Prompt tokens per step: if no sequence decodes, and together with sequences that do.
CHUNK, MIXED_CHUNK = 512, 32
# Prompt tokens per step if it returns the logits of each: they take chunk * vocab_size * 4 bytes.
LOGPROBS_CHUNK = 64

log = logging.getLogger(__name__)
NewDetokenizer = Callable[[Sequence[int]], TokenText | None]


class Engine:
    """To be used from one thread. waiting: sequences without a slot, in order of arrival; running: those with one."""

    def __init__(
        self,
        session: Session,
        *,
        stop_ids: Collection[int],
        chunk: int = CHUNK,
        mixed_chunk: int = MIXED_CHUNK,
        detokenizer: NewDetokenizer = lambda prompt_ids: None,
    ) -> None:
        self.session, self.slots = session, SlotPool(session.slots)
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self._stop_ids, self._detokenizer = frozenset(stop_ids), detokenizer
        self._chunk, self._mixed_chunk = chunk, mixed_chunk

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue the request's sequences; UsageError for a prompt that is empty, too long or has unknown ids."""
        limit = output_limit(self.session, request.prompt_ids, request.params.max_tokens)
        self._sampler(request, 0)  # raises UsageError for what the vocabulary does not have
        if request.params.guided is not None and request.grammar is None:
            raise UsageError("guided output needs a compiled grammar: use LLM")
        first: Generation | None = None
        for index in range(request.params.n):
            generation = Generation(
                request=request,
                index=index,
                text=TextStream(self._detokenizer(request.prompt_ids), StopStrings(request.params.stops)),
                limit=limit,
                ids=list(request.prompt_ids),
                since=request.arrival,
                first=first,
                matcher=None if request.grammar is None else request.grammar.matcher(),
            )
            first = first or generation
            self.waiting.append(generation)

    def cancel(self, number: int) -> None:
        """Drop the request's sequences and free their slots; its sink is not called again."""
        self.waiting = deque(one for one in self.waiting if one.request.number != number)
        for one in [one for one in self.running if one.request.number == number]:
            self._leave(one)

    def step(self) -> None:
        """Run one step for all sequences in slots, and pass the new tokens to their sinks. Does nothing if idle."""
        self._admit()
        if not self.running:
            return
        asks_all = any(one.request.params.prompt_logprobs is not None and one.is_prefilling for one in self.running)
        chunk = min(self._chunk, LOGPROBS_CHUNK) if asks_all else self._chunk
        planned = plan_step(self.running, chunk=chunk, mixed_chunk=min(self._mixed_chunk, chunk))
        try:
            logits, owners = self._run(planned)
        except Exception as error:
            self._fail_all(error)
            return
        for one, count in planned:
            assert one.slot is not None
            self.slots.extend(one.slot, one.ids[one.cached : one.cached + count])
            one.cached += count
        for one, start, stop in owners:
            self._take(one, logits[start:stop])

    def clear(self) -> None:
        """Cancel all requests."""
        for number in {one.request.number for one in (*self.running, *self.waiting)}:
            self.cancel(number)

    def end(self, error: MegrezError) -> None:
        """Drop all requests and pass `error` to their sinks."""
        for request in {one.request.number: one.request for one in (*self.running, *self.waiting)}.values():
            self.cancel(request.number)
            self._tell(request, error)

    def _admit(self) -> None:
        while self.waiting and self.slots.free:
            one = self.waiting[0]
            if one.first is not None and one.first.is_prefilling and one.first.slot is not None:
                return  # its sibling's prompt is copied once it is computed
            self.waiting.popleft()
            reuse = one.request.reuse_prefix and one.request.params.prompt_logprobs is None
            assigned = self.slots.assign(one.ids, reuse=reuse)
            if assigned.source is not None:
                self.session.copy(assigned.source, assigned.slot, assigned.length)
            one.slot, one.cached, one.cached_tokens = assigned.slot, assigned.length, assigned.length
            one.sampler = self._sampler(one.request, one.index)
            self.running.append(one)

    def _sampler(self, request: Request, index: int) -> Sampler:
        if unknown := [i for i in request.params.stop_token_ids if not 0 <= i < self.session.vocab_size]:
            raise UsageError(
                f"stop_token_ids has {unknown[0]}, the vocabulary {self.session.vocab_size}: give ids below that"
            )
        return Sampler(request.params, request.prompt_ids, self.session.vocab_size, index=index)

    def _run(self, planned: Planned) -> tuple[Logits, list[tuple[Generation, int, int]]]:
        """One step; logits [W, V], and the range of them that belongs to each sequence: (sequence, start, stop)."""
        tokens: list[int] = []
        wanted: list[int] = []
        owners: list[tuple[Generation, int, int]] = []
        for one, count in planned:
            offset, before = len(tokens), len(wanted)
            tokens += one.ids[one.cached : one.cached + count]
            if one.request.params.prompt_logprobs is not None and one.output_tokens == 0 and one.index == 0:
                wanted += range(offset, offset + count)
            elif count == one.pending:
                wanted.append(offset + count - 1)
            if len(wanted) > before:
                owners.append((one, before, len(wanted)))
        logits = self.session.step(
            np.array(tokens, np.int64),
            np.array([one.cached for one, _ in planned], np.int32),
            np.array(wanted, np.int64),
            slots=np.array([one.slot for one, _ in planned], np.int64),
            counts=np.array([count for _, count in planned], np.int64),
        )
        return logits, owners

    def _take(self, one: Generation, logits: Logits) -> None:
        """Sample the sequence's next token if its prompt is complete, and pass it to the sink."""
        try:
            self._note_prompt(one, logits)
            if one.pending:
                return
            token, logprobs = self._sample(one, logits[-1])
            reason = self._reason(one, token)
            complete = one.matcher is not None and reason != "stop" and one.matcher.push(token)
        except Exception as error:
            self.cancel(one.request.number)
            self._tell(one.request, error)
            return
        one.ids.append(token)
        hidden = reason == "stop" or (complete and token in self._stop_ids)
        text, stop_string = one.text.push(token, hidden=hidden, last=complete or reason is not None)
        ended_by = stop_string if stop_string is not None else token if hidden else None
        reason = "stop" if stop_string is not None or complete else reason
        now = time.perf_counter()
        first = one.output_tokens == 1
        found = Token(
            index=one.index,
            token=token,
            text=text,
            seconds=now - one.since,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=ended_by,
            cached_tokens=one.cached_tokens,
            prompt_logprobs=tuple(one.prompt_logprobs) if first and one.prompt_logprobs else None,
        )
        one.since = now
        if reason:
            self._leave(one)
        self._tell(one.request, found)

    def _note_prompt(self, one: Generation, logits: Logits) -> None:
        count = one.request.params.prompt_logprobs
        if count is None or one.output_tokens or one.index:
            return
        start = one.cached - len(logits)
        for at, row in enumerate(logits, start + 1):
            if at < len(one.request.prompt_ids):
                one.prompt_logprobs.append(top_logprobs(row, one.request.prompt_ids[at], count))

    def _sample(self, one: Generation, logits: Scores) -> tuple[int, TokenLogprobs | None]:
        assert one.sampler is not None
        params = one.request.params
        early = one.output_tokens < params.min_tokens
        blocked = (*self._stop_ids, *params.stop_token_ids) if early else ()
        if one.matcher is None:
            return one.sampler.next(logits, blocked=blocked)
        allowed = one.matcher.allowed()
        if early or params.ignore_eos:
            allowed = _without(allowed, blocked or self._stop_ids)
        return one.sampler.next(logits, allowed=allowed)

    def _reason(self, one: Generation, token: int) -> FinishReason | None:
        """Why the sequence ends with `token`, which is not among its ids yet."""
        params = one.request.params
        if token in params.stop_token_ids or (token in self._stop_ids and not params.ignore_eos):
            return "stop"
        return "length" if one.output_tokens + 1 >= one.limit else None

    def _leave(self, one: Generation) -> None:
        self.running.remove(one)
        assert one.slot is not None
        self.slots.release(one.slot)

    def _fail_all(self, error: Exception) -> None:
        """The session failed: end all running requests with the error, and do not reuse what their slots hold."""
        failed = self.running.copy()
        for one in failed:
            assert one.slot is not None
            self._leave(one)
            self.slots.forget(one.slot)
        for request in {one.request.number: one.request for one in failed}.values():
            self.cancel(request.number)
            self._tell(request, error)

    def _tell(self, request: Request, found: Token | Exception) -> None:
        """Call the sink; if it fails, only its own request is cancelled."""
        try:
            request.sink(found)
        except Exception:
            log.exception("the sink of request %d failed: it is cancelled", request.number)
            self.cancel(request.number)


def _without(allowed: Allowed, blocked: Collection[int]) -> Allowed:
    """The allowed tokens without `blocked`, unless the grammar allows no others."""
    others = allowed.copy()
    others[list(blocked)] = False
    return others if others.any() else allowed


def output_limit(session: Session, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
    """How many tokens may be generated. The last one is not fed back, so it needs no space in the cache.

    Raises UsageError for a prompt that is empty, too long or has unknown ids.
    """
    if not prompt_ids:
        raise UsageError("the prompt is empty: give at least one token")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: give 1 or more")
    if len(prompt_ids) > session.capacity:
        raise UsageError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {session.capacity}: "
            "shorten it, or compile with a longer context"
        )
    if unknown := [i for i in prompt_ids if not 0 <= i < session.vocab_size]:
        raise UsageError(
            f"token id {unknown[0]} is outside the model's vocabulary of {session.vocab_size}: "
            "the tokenizer does not belong to these weights"
        )
    limit = session.capacity - len(prompt_ids) + 1
    return limit if max_tokens is None else min(limit, max_tokens)
