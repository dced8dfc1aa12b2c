"""Sends the requests of a workload, so many at once or at their arrival times; knows no transport and no figures."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.workload import WARMUP, Ask, Workload
from megrez.runtime.errors import MegrezError

Clock = Callable[[], float]
Note = Callable[[Record], None]
# Why a run that the user ended has stopped.
INTERRUPTED = "interrupted by Ctrl-C"


class StoppedError(MegrezError):
    """Nobody answers any more: the benchmark ends, with what was measured until then."""


class Client(Protocol):
    """Answers requests; one that fails is a Record with an error. Raises StoppedError."""

    async def send(self, ask: Ask) -> Record: ...


async def drive(
    client: Client,
    asks: Iterable[Ask],
    note: Note,
    *,
    concurrency: int | None,
    duration_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> None:
    """Send all requests and pass each one's record to `note`; raises StoppedError as soon as a request does.

    duration_s: no request is sent after so many seconds; those in flight are waited for.
    """
    tasks: set[asyncio.Task[None]] = set()
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    free = asyncio.Semaphore(concurrency) if concurrency is not None else None

    async def answer(ask: Ask) -> None:
        try:
            note(await client.send(ask))
        except Exception as error:
            if not stopped.done():
                stopped.set_exception(error)
        finally:
            if free is not None:
                free.release()

    async def dispatch() -> None:
        started = clock()
        for ask in asks:
            await asyncio.sleep(max(0.0, started + ask.at - clock()))
            if free is not None:
                await free.acquire()
            if duration_s is not None and clock() - started >= duration_s:
                break
            task = asyncio.create_task(answer(ask))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)

    dispatcher = asyncio.create_task(dispatch())
    try:
        await asyncio.wait({dispatcher, stopped}, return_when=asyncio.FIRST_COMPLETED)
        (stopped if stopped.done() else dispatcher).result()
    finally:
        left = [dispatcher, *tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        stopped.cancel()


async def run_workload(
    client: Client,
    workload: Workload,
    repetitions: list[list[Record]],
    *,
    started: Callable[[], None] = lambda: None,
    note: Note = lambda record: None,
    clock: Clock = time.perf_counter,
) -> None:
    """Warm up, then append one list of records per repetition; they are kept where this is interrupted or raises.

    started: called once the warm-up is over. Raises MegrezError if every request of the warm-up fails.
    """
    load = workload.load
    warm: list[Record] = []
    await drive(client, workload.asks(WARMUP), warm.append, concurrency=load.concurrency, clock=clock)
    if warm and all(one.error is not None for one in warm):
        raise MegrezError(f"every request of the warm-up failed: {warm[0].error}")
    started()
    for repetition in range(load.repeat):
        records: list[Record] = []
        repetitions.append(records)

        def keep(record: Record, records: list[Record] = records) -> None:
            records.append(record)
            note(record)

        await drive(
            client,
            workload.asks(repetition),
            keep,
            concurrency=load.concurrency,
            duration_s=load.duration_s,
            clock=clock,
        )
