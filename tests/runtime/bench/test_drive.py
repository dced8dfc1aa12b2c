"""When requests are sent, by the clock of an event loop that jumps to its next timer: figures are exact."""

import asyncio
import selectors
from dataclasses import dataclass, field

import pytest

from megrez.runtime.bench.drive import StoppedError, drive, run_workload
from megrez.runtime.bench.figures import Record, combine
from megrez.runtime.bench.settings import Load, Span
from megrez.runtime.bench.workload import Ask, Workload
from megrez.runtime.errors import MegrezError


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                assert timeout is not None, "everything waits for something else"
                loop.now += timeout
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(make):
    loop = JumpingLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()


@dataclass
class Fake:
    """Its first token takes half a second, each further one a quarter."""

    loop: JumpingLoop
    fails: dict[int, Exception | str] = field(default_factory=dict)
    asked: list[tuple[float, int]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    cancelled: int = 0

    async def send(self, ask: Ask) -> Record:
        sent, number = self.loop.time(), len(self.asked)
        self.asked.append((sent, len(ask.prompt)))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.5)
            fault = self.fails.get(number)
            if isinstance(fault, Exception):
                raise fault
            times = [self.loop.time()]
            while len(times) < ask.output_tokens:
                await asyncio.sleep(0.25)
                times.append(self.loop.time())
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if fault:
            return Record(sent=sent, done=times[-1], error=fault)
        return Record(
            sent=sent, done=times[-1], times=tuple(times), prompt_tokens=len(ask.prompt), output_tokens=len(times)
        )


def asks(count: int, *, output_tokens: int = 3, at=lambda n: 0.0) -> list[Ask]:
    return [Ask(prompt=[1, 2], output_tokens=output_tokens, at=at(n)) for n in range(count)]


def driven(given: list[Ask], fails=None, **how) -> tuple[Fake, list[Record]]:
    records: list[Record] = []

    async def go(loop):
        fake = Fake(loop, fails or {})
        try:
            await drive(fake, given, records.append, clock=loop.time, **how)
        finally:
            fakes.append(fake)

    fakes: list[Fake] = []
    try:
        run(go)
    except StoppedError as error:
        return fakes[0], [*records, error]  # type: ignore[list-item]
    return fakes[0], records


def test_a_request_is_sent_as_soon_as_another_ends():
    fake, records = driven(asks(5), concurrency=2)
    assert fake.asked == [(0, 2), (0, 2), (1, 2), (1, 2), (2, 2)] and fake.most == 2
    assert [one.done for one in records] == [1, 1, 2, 2, 3]
    found = combine([records])
    assert found["aggregate_output_tokens_per_s"] == 5 and found["total_tokens_per_s"] == 25 / 3
    assert found["ttft_p50_s"] == 0.5 and found["itl_p99_s"] == 0.25 and found["latency_max_s"] == 1


def test_requests_arrive_at_their_times_whoever_is_still_served():
    fake, _ = driven(asks(4, at=lambda n: n * 0.375), concurrency=None)
    assert [at for at, _ in fake.asked] == [0, 0.375, 0.75, 1.125] and fake.most == 3
    bounded, _ = driven(asks(4, at=lambda n: n * 0.375), concurrency=1)
    assert [at for at, _ in bounded.asked] == [0, 1, 2, 3]


def test_after_the_duration_none_is_sent_and_those_in_flight_end():
    fake, records = driven(asks(100), concurrency=1, duration_s=2.5)
    assert [at for at, _ in fake.asked] == [0, 1, 2] and [one.done for one in records] == [1, 2, 3]


def test_a_failed_request_is_noted_and_the_rest_go_on():
    _, records = driven(asks(3), {1: "status 500"}, concurrency=1)
    assert [one.error for one in records] == [None, "status 500", None]


def test_one_that_stopped_ends_the_run_at_once_and_what_was_measured_is_kept():
    fake, records = driven(asks(50), {4: StoppedError("gone")}, concurrency=3)
    assert [one.done for one in records[:-1]] == [1, 1, 1] and str(records[-1]) == "gone"
    assert len(fake.asked) == 6 and fake.cancelled == 2 and fake.running == 0


def test_the_warm_up_counts_in_no_repetition_and_starts_the_clock_when_it_is_over():
    repetitions: list[list[Record]] = []
    began: list[float] = []
    load = Load(requests=2, concurrency=2, warmup=4, repeat=3, prompt_tokens=Span(2, 2), output_tokens=Span(3, 3))

    async def go(loop):
        fake = Fake(loop)
        workload = Workload(load=load, vocab_size=50)
        started = lambda: began.append(loop.time())  # noqa: E731
        await run_workload(fake, workload, repetitions, started=started, clock=loop.time)

    run(go)
    assert began == [2.0] and [[one.sent for one in records] for records in repetitions] == [[2, 2], [3, 3], [4, 4]]


def test_a_warm_up_of_nothing_but_failures_says_why():
    load = Load(requests=2, concurrency=2, warmup=2)

    async def go(loop):
        fake = Fake(loop, {0: "status 404 (no such model)", 1: "status 404 (no such model)"})
        await run_workload(fake, Workload(load=load, vocab_size=50), [], clock=loop.time)

    with pytest.raises(MegrezError, match="every request of the warm-up failed: status 404"):
        run(go)
