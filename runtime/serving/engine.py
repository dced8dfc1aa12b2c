"""The decode loop: in-flight batching of many sequences over one session; independent of bundles and threads.

Requests join and leave between steps. The output of a sequence depends on its own tokens only.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from megrez.runtime.errors import MegrezError, UsageError
from megrez.runtime.logprobs import top_logprobs
from megrez.runtime.sampling import Scores
from megrez.runtime.serving.drafting.drafter import Draft
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.limits import output_limit
from megrez.runtime.serving.mixed_chunk import MixedChunk
from megrez.runtime.serving.next_token import finish_reason, new_sampler, sample
from megrez.runtime.serving.request import Generation, Request, Token
from megrez.runtime.serving.scheduler import Planned, plan_step
from megrez.runtime.serving.slots import SlotPool
from megrez.runtime.serving.text_stream import TextStream, TokenText
from megrez.runtime.session import Logits, Session
from megrez.runtime.stops import StopStrings

# Prompt tokens per step: if no sequence decodes, and together with sequences that do, at least.
CHUNK, MIXED_CHUNK = 512, 32
# Prompt tokens per step if it returns the logits of each: they take chunk * vocab_size * 4 bytes.
LOGPROBS_CHUNK = 64

log = logging.getLogger(__name__)
NewDetokenizer = Callable[[Sequence[int]], TokenText | None]
Drafts = Mapping[Generation, Draft]


class Engine:
    """To be used from one thread. waiting: sequences without a slot, in order of arrival; running: those with one.

    A step gives a sequence its next token, and one more after each drafted token that equals the one sampled there.
    Rejected tokens need no undoing: the next step overwrites what the slot holds beyond `cached`.
    """

    def __init__(
        self,
        session: Session,
        *,
        stop_ids: Collection[int],
        chunk: int = CHUNK,
        mixed_chunk: int = MIXED_CHUNK,
        detokenizer: NewDetokenizer = lambda prompt_ids: None,
        speculation: Speculation | None = None,
    ) -> None:
        self.session, self.slots = session, SlotPool(session.slots)
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self._stop_ids, self._detokenizer = frozenset(stop_ids), detokenizer
        self._chunk, self._mixed_chunk = chunk, MixedChunk(mixed_chunk, chunk)
        self.speculation = speculation

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue the request's sequences; UsageError for a prompt that is empty, too long or has unknown ids."""
        limit = output_limit(self.session, request.prompt_ids, request.params.max_tokens)
        new_sampler(request, 0, self.session.vocab_size)  # raises UsageError for what the vocabulary does not have
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
        planned = self._plan()
        drafts = self._drafts(planned)
        began = time.perf_counter()
        try:
            logits, owners = self._run(planned, drafts)
        except Exception as error:
            self._fail_all(error)
            return
        self._note_step(planned, drafts, time.perf_counter() - began)
        for one, count in planned:
            assert one.slot is not None
            self.slots.extend(one.slot, one.ids[one.cached : one.cached + count])
            one.cached += count
        for one, start, stop in owners:
            if one in self.running:  # what its sibling met may have cancelled it
                self._take(one, logits[start:stop], drafts.get(one, []))

    def clear(self) -> None:
        """Cancel all requests."""
        for number in {one.request.number for one in (*self.running, *self.waiting)}:
            self.cancel(number)

    def end(self, error: MegrezError) -> None:
        """Drop all requests and pass `error` to their sinks."""
        for request in {one.request.number: one.request for one in (*self.running, *self.waiting)}.values():
            self._drop(request, error)

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
            one.sampler = new_sampler(one.request, one.index, self.session.vocab_size)
            self.running.append(one)

    def _plan(self) -> Planned:
        asks_all = any(one.request.params.prompt_logprobs is not None and one.is_prefilling for one in self.running)
        chunk = min(self._chunk, LOGPROBS_CHUNK) if asks_all else self._chunk
        return plan_step(self.running, chunk=chunk, mixed_chunk=min(self._mixed_chunk.length, chunk))

    def _drafts(self, planned: Planned) -> Drafts:
        """None beside a prefill, whose rows fill the step already."""
        if self.speculation is None or any(one.is_prefilling for one, _ in planned):
            return {}
        running = [one for one, _ in planned]
        return {one: draft for one, draft in zip(running, self.speculation.draft(running), strict=True) if draft}

    def _note_step(self, planned: Planned, drafts: Drafts, seconds: float) -> None:
        prompt_tokens = sum(count for one, count in planned if one.is_prefilling)
        if not drafts and any(not one.is_prefilling for one, _ in planned):
            self._mixed_chunk.note_step(prompt_tokens, seconds)
        if self.speculation is not None and not prompt_tokens:
            self.speculation.note_step(len(planned) + sum(len(draft) for draft in drafts.values()), seconds)

    def _run(self, planned: Planned, drafts: Drafts) -> tuple[Logits, list[tuple[Generation, int, int]]]:
        """One step; logits [W, V], and the range of them that belongs to each sequence: (sequence, start, stop).

        Those of a sequence that decodes are of its pending token and of its draft.
        """
        tokens: list[int] = []
        wanted: list[int] = []
        owners: list[tuple[Generation, int, int]] = []
        for one, count in planned:
            offset, before = len(tokens), len(wanted)
            draft = drafts.get(one, [])
            tokens += [*one.ids[one.cached : one.cached + count], *draft]
            if one.request.params.prompt_logprobs is not None and one.output_tokens == 0 and one.index == 0:
                wanted += range(offset, offset + count)
            elif count == one.pending:
                wanted += range(offset + count - 1, offset + count + len(draft))
            if len(wanted) > before:
                owners.append((one, before, len(wanted)))
        logits = self.session.step(
            np.array(tokens, np.int64),
            np.array([one.cached for one, _ in planned], np.int32),
            np.array(wanted, np.int64),
            slots=np.array([one.slot for one, _ in planned], np.int64),
            counts=np.array([count + len(drafts.get(one, [])) for one, count in planned], np.int64),
        )
        return logits, owners

    def _take(self, one: Generation, logits: Logits, draft: Draft) -> None:
        """Generate what the logits allow, which is nothing while the prompt is incomplete."""
        try:
            self._note_prompt(one, logits)
        except Exception as error:
            self._drop(one.request, error)
            return
        if one.pending:
            return
        rows = logits[len(logits) - 1 - len(draft) :]
        for row, guess in zip(rows, [*draft, None], strict=True):
            if not self._advance(one, row, guess):
                return
            assert one.slot is not None and guess is not None
            self.slots.extend(one.slot, [guess])
            one.cached += 1

    def _advance(self, one: Generation, logits: Scores, guess: int | None) -> bool:
        """Sample the next token and pass it to the sink; True if it is `guess` and does not end the sequence."""
        try:
            token, logprobs = sample(one, logits, self._stop_ids)
            reason = finish_reason(one, token, self._stop_ids)
            complete = one.matcher is not None and reason != "stop" and one.matcher.push(token)
        except Exception as error:
            self._drop(one.request, error)
            return False
        one.ids.append(token)
        self._note_guess(one, guess)
        hidden = reason == "stop" or (complete and token in self._stop_ids)
        text, stop_string = one.text.push(token, hidden=hidden, last=complete or reason is not None)
        reason = "stop" if stop_string is not None or complete else reason
        now = time.perf_counter()
        found = Token(
            index=one.index,
            token=token,
            text=text,
            seconds=now - one.since,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop_string if stop_string is not None else token if hidden else None,
            cached_tokens=one.cached_tokens,
            prompt_logprobs=tuple(one.prompt_logprobs) if one.output_tokens == 1 and one.prompt_logprobs else None,
            drafted_tokens=one.drafted_tokens,
            accepted_tokens=one.accepted_tokens,
        )
        one.since = now
        if reason:
            self._leave(one)
        self._tell(one.request, found)
        return token == guess and one in self.running

    def _note_guess(self, one: Generation, guess: int | None) -> None:
        if self.speculation is not None and guess is not None:
            self.speculation.note_guess(one, accepted=one.ids[-1] == guess)

    def _note_prompt(self, one: Generation, logits: Logits) -> None:
        count = one.request.params.prompt_logprobs
        if count is None or one.output_tokens or one.index:
            return
        start = one.cached - len(logits)
        for at, row in enumerate(logits, start + 1):
            if at < len(one.request.prompt_ids):
                one.prompt_logprobs.append(top_logprobs(row, one.request.prompt_ids[at], count))

    def _leave(self, one: Generation) -> None:
        self.running.remove(one)
        assert one.slot is not None
        self.slots.release(one.slot)
        if self.speculation is not None:
            self.speculation.release(one.slot)

    def _drop(self, request: Request, error: Exception) -> None:
        self.cancel(request.number)
        self._tell(request, error)

    def _fail_all(self, error: Exception) -> None:
        """The session failed: end all running requests with the error, and do not reuse what their slots hold."""
        failed = self.running.copy()
        for one in failed:
            assert one.slot is not None
            self._leave(one)
            self.slots.forget(one.slot)
        for request in {one.request.number: one.request for one in failed}.values():
            self._drop(request, error)

    def _tell(self, request: Request, found: Token | Exception) -> None:
        """Call the sink; if it fails, only its own request is cancelled."""
        try:
            request.sink(found)
        except Exception:
            log.exception("the sink of request %d failed: it is cancelled", request.number)
            self.cancel(request.number)
