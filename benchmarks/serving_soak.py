"""A server under clients that behave badly: are all its slots, its memory and its answers there at the end?

python benchmarks/serving_soak.py BUNDLE [--requests 500] [--slots 4] [--clients 16] [--seed 0] [--json-file FILE]

A quarter of the requests is abandoned at random moments (queued, in prefill, in decode; streaming or not), a tenth is
malformed, the rest is answered. Then SIGTERM in mid-stream, and kill -9 with a restart on the same port. Exits with 1
and names every check that failed.
"""

import asyncio
import contextlib
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from served import Reply, Served, answer, ask, served, until

from megrez.runtime.bench.connection import BrokenConnectionError
from megrez.runtime.bench.environment import describe_environment, load_average
from megrez.runtime.bundle import open_bundle

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
WORDS = (
    "the",
    "a",
    "river",
    "mountain",
    "old",
    "new",
    "light",
    "of",
    "in",
    "on",
    "and",
    "but",
    "walks",
    "sees",
    "stone",
)
LONGEST, LONGEST_TEXT = 33, 20_000
# Resident memory may grow by so much after the warm-up: allocators keep what the largest step so far needed.
FLAT_SHARE, FLAT_BYTES = 0.02, 8 << 20
MALFORMED: list[tuple[str, dict[str, Any] | bytes, int]] = [
    (COMPLETIONS, b"{", 400),
    (COMPLETIONS, b"\xff\xfe", 400),
    (COMPLETIONS, b"[" * 100_000, 400),
    (COMPLETIONS, {"prompt": 5}, 400),
    (COMPLETIONS, {"prompt": "a", "max_tokens": -1}, 400),
    (COMPLETIONS, {"prompt": "a", "temperature": 1e308, "stream": True}, 400),
    (COMPLETIONS, {"prompt": [10**12], "stream": True}, 400),
    (COMPLETIONS, {"prompt": "a " * LONGEST_TEXT}, 400),
    (COMPLETIONS, {"prompt": "a", "model": "another"}, 404),
    (CHAT, {"messages": []}, 400),
    (CHAT, {"messages": [{"role": "user", "content": 7}], "stream": True}, 400),
    ("/v1/nothing", {"prompt": "a"}, 404),
]


@dataclass(slots=True)
class Soak:
    """What has happened so far. resident: bytes after each request that ended."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def check(self, holds: bool, said: str) -> None:
        if not holds:
            self.fault(said)

    def fault(self, said: str) -> None:
        click.echo(f"fault: {said}", err=True)
        self.faults.append(said)


@dataclass(frozen=True, slots=True)
class Question:
    path: str
    body: dict[str, Any]

    def streamed(self, stream: bool) -> dict[str, Any]:
        return {**self.body, "stream": stream, **({"stream_options": {"include_usage": True}} if stream else {})}


def question(source: random.Random, most_tokens: int) -> Question:
    """With less than `most_tokens` words, to be answered in less than `most_tokens` tokens."""
    text = " ".join(source.choices(WORDS, k=source.randrange(4, most_tokens)))
    body: dict[str, Any] = {"max_tokens": source.randrange(1, most_tokens), "temperature": 0}
    if source.random() < 0.3:
        return Question(CHAT, {**body, "messages": [{"role": "user", "content": text}]})
    return Question(COMPLETIONS, {**body, "prompt": text, "ignore_eos": source.random() < 0.5})


class Clients:
    """fixed: questions whose answers are known, by their place."""

    def __init__(self, server: Served, soak: Soak, fixed: list[Question], known: list[str]) -> None:
        self._server, self._soak, self._fixed, self._known = server, soak, fixed, known

    async def behave(self, number: int, seed: int) -> None:
        """One request, well behaved or not, as the seed decides."""
        source = random.Random(seed * 1_000_003 + number)
        draw = source.random()
        try:
            if draw < 0.25:
                await self._abandon(source)
            elif draw < 0.35:
                await self._malformed(source)
            elif draw < 0.65:
                await self._known_answer(source)
            else:
                await self._complete(question(source, LONGEST).streamed(source.random() < 0.5), source)
        except Exception as error:
            self._soak.fault(f"request {number}: {type(error).__name__}: {error}")
        self._soak.resident.append(self._server.resident_bytes())

    async def _complete(self, body: dict[str, Any], source: random.Random) -> None:
        path = CHAT if "messages" in body else COMPLETIONS
        reply = await answer(self._server, path, body)
        self._soak.counts["completed"] += 1
        good = reply.status == 200 and reply.is_whole and reply.finish_reason in ("stop", "length")
        self._soak.check(good and reply.error is None, f"an answer is not whole: {reply}")
        counted = reply.usage.get("completion_tokens", 0)
        self._soak.check(1 <= counted <= body["max_tokens"], f"{counted} tokens, {body['max_tokens']} at most")

    async def _known_answer(self, source: random.Random) -> None:
        at = source.randrange(len(self._fixed))
        reply = await answer(self._server, self._fixed[at].path, self._fixed[at].streamed(source.random() < 0.5))
        self._soak.counts["known answers"] += 1
        self._soak.check(reply.text == self._known[at], f"question {at}: {reply} in place of {self._known[at]!r}")

    async def _malformed(self, source: random.Random) -> None:
        path, body, status = source.choice(MALFORMED)
        reply = await answer(self._server, path, body)
        self._soak.counts["malformed"] += 1
        message = (reply.error or {}).get("message")
        self._soak.check(reply.status == status and bool(message), f"{str(body)[:80]} got {reply}, not {status}")

    async def _abandon(self, source: random.Random) -> None:
        """Leave before the body is sent, after a moment, or after some pieces of a stream."""
        asked, stream = question(source, 10 * LONGEST), source.random() < 0.5
        connection, reply = self._server.connection(), Reply()
        pieces = source.randrange(1, 12) if stream and source.random() < 0.5 else None
        moment = source.choice((0.0, source.uniform(0, 0.2), source.uniform(0, 3)))

        async def leave_after_pieces() -> None:
            async for _ in ask(connection, asked.path, {**asked.streamed(stream), "ignore_eos": True}, reply):
                if pieces is not None and reply.pieces >= pieces:
                    return

        try:
            with contextlib.suppress(asyncio.TimeoutError):
                if source.random() < 0.1:
                    await self._half_a_body()
                else:
                    await asyncio.wait_for(leave_after_pieces(), None if pieces is not None else moment)
        finally:
            await connection.close()
        where = "before its answer" if not reply.pieces else "in its stream"
        self._soak.counts["ended before it could leave" if reply.is_whole else f"abandoned {where}"] += 1
        self._soak.check(reply.status in (None, 200), f"an abandoned request got {reply}")

    async def _half_a_body(self) -> None:
        address = self._server.address
        _, writer = await asyncio.open_connection(address.host, address.port)
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        writer.write(head.encode() + b'{"prompt": "a')
        await writer.drain()
        writer.close()


async def soak_server(
    server: Served, soak: Soak, *, requests: int, clients: int, slots: int, context: int, seed: int
) -> list[str]:
    """Returns the answers to the known questions."""
    await fill(server, slots, context)
    fixed = [question(random.Random(seed + at), LONGEST) for at in range(8)]
    known = [(await answer(server, one.path, one.streamed(False))).text for one in fixed]
    crowd, numbers = Clients(server, soak, fixed, known), itertools.count()

    async def work() -> None:
        while (number := next(numbers)) < requests:
            await crowd.behave(number, seed)
            _progress(requests, soak)

    await asyncio.gather(*(work() for _ in range(clients)))
    await check_slots(server, soak, slots)
    again = [(await answer(server, one.path, one.streamed(True))).text for one in fixed]
    soak.check(again == known, f"the answers differ at the end: {again} in place of {known}")
    check_memory(soak)
    return known


async def fill(server: Served, slots: int, context: int) -> None:
    """Touch the whole KV cache, whose pages are not resident before, and let every thread that tokenizes read the
    longest text: each keeps the memory that this needs.
    """
    prompts = [random.Random(at).choices(range(1000), k=context - 1) for at in range(slots)]
    bodies = [{"prompt": prompt, "max_tokens": 1} for prompt in prompts]
    await asyncio.gather(*(answer(server, COMPLETIONS, body) for body in bodies))
    longest = {"prompt": "a " * LONGEST_TEXT}
    for _ in range(4):
        await asyncio.gather(*(answer(server, COMPLETIONS, longest) for _ in range(16)))


async def check_slots(server: Served, soak: Soak, slots: int) -> None:
    """All slots are free, and all of them run again at once."""

    async def is_idle() -> bool:
        names = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
        return not any([await server.metric(name) for name in names])

    soak.check(await until(is_idle), "a slot or a place in the queue is still held after all clients have gone")

    async def all_run() -> bool:
        running = await server.metric("vllm:num_requests_running")
        return running == slots and not await server.metric("vllm:num_requests_waiting")

    body = {"prompt": "the", "max_tokens": 2000, "ignore_eos": True}
    tasks = [asyncio.create_task(answer(server, COMPLETIONS, body)) for _ in range(slots)]
    soak.check(await until(all_run), f"not all of the {slots} slots run again")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    soak.check(await until(is_idle), "a slot is still held after its client has gone")


def check_memory(soak: Soak) -> None:
    """Over the last fifth of the requests, against the second fifth: the first one warms up."""
    fifth = max(1, len(soak.resident) // 5)
    before, after = (statistics.median(part) for part in (soak.resident[fifth : 2 * fifth], soak.resident[-fifth:]))
    grown = after - before
    soak.check(
        grown <= FLAT_SHARE * before + FLAT_BYTES,
        f"resident memory grew by {grown / 2**20:.1f} MiB, from {before / 2**20:.1f} MiB",
    )


async def end_by_sigterm(server: Served, soak: Soak, slots: int) -> None:
    """Short answers finish, those that outlast the drain are told, queued ones are either."""
    bodies = [
        {"prompt": "the river", "max_tokens": 8 if at % 2 else 4000, "ignore_eos": True, "stream": True}
        for at in range(slots + 2)
    ]
    tasks = [asyncio.create_task(answer(server, COMPLETIONS, body)) for body in bodies]

    async def has_begun() -> bool:
        return await server.metric("vllm:num_requests_running") == slots

    soak.check(await until(has_begun), "the requests before SIGTERM do not run")
    server.process.send_signal(signal.SIGTERM)
    for at, found in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if isinstance(found, BaseException):
            soak.fault(f"SIGTERM broke client {at} off: {found!r}")
            continue
        ended = found.is_whole and found.finish_reason == "length" and found.error is None
        told = found.error is not None and "shutting down" in str(found.error.get("message"))
        soak.check(ended or told, f"SIGTERM left client {at} without an end: {found}")
        soak.counts["finished after SIGTERM" if ended else "told of SIGTERM"] += 1
    code = await asyncio.to_thread(server.process.wait)
    soak.check(code == 0, f"the exit code after SIGTERM is {code}")


async def kill_in_mid_stream(server: Served, soak: Soak) -> None:
    connection, reply = server.connection(), Reply()
    body = {"prompt": "the river", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with contextlib.suppress(BrokenConnectionError):
        async for _ in ask(connection, COMPLETIONS, body, reply):
            if reply.pieces == 2:
                server.stop(signal.SIGKILL)
    await connection.close()
    soak.check(not reply.is_whole, "a server that was killed ended its stream")


async def first_answer(server: Served, soak: Soak, known: list[str], seed: int) -> None:
    asked = question(random.Random(seed), LONGEST)
    reply = await answer(server, asked.path, asked.streamed(False))
    soak.check(reply.text == known[0], f"after kill -9 and a restart: {reply} in place of {known[0]!r}")


def _progress(requests: int, soak: Soak) -> None:
    number = len(soak.resident)
    if number % max(1, requests // 20) == 0:
        click.echo(f"{number} of {requests}, {soak.resident[-1] / 2**20:.0f} MiB, {len(soak.faults)} faults", err=True)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=500, show_default=True)
@click.option("--clients", default=16, show_default=True, help="Requests in flight.")
@click.option("--slots", default=4, show_default=True)
@click.option("--context", type=click.IntRange(min=64), default=512, show_default=True, help="Tokens of a slot.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json-file", type=click.Path(path_type=Path))
def main(
    bundle: Path, requests: int, clients: int, slots: int, context: int, seed: int, json_file: Path | None
) -> None:
    soak, environment = Soak(), describe_environment(open_bundle(bundle), None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        options = ("--slots", slots, "--context", context, "--drain", 1)
        with served(bundle, log, *options) as server:
            port = server.address.port
            known = asyncio.run(
                soak_server(server, soak, requests=requests, clients=clients, slots=slots, context=context, seed=seed)
            )
            asyncio.run(end_by_sigterm(server, soak, slots))
        with served(bundle, log, *options, port=port) as server:
            asyncio.run(kill_in_mid_stream(server, soak))
        began = time.perf_counter()
        with served(bundle, log, *options, port=port) as server:
            asyncio.run(first_answer(server, soak, known, seed))
            restart_s = time.perf_counter() - began
            soak.check(server.stop() == 0, "the last server did not exit with 0")
        check_log(log, soak)
    environment["load_average_after"] = load_average()
    resident = soak.resident[:: max(1, len(soak.resident) // 50)]
    found = {
        "requests": requests,
        "clients": clients,
        "slots": slots,
        "context": context,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "restart_to_first_answer_s": round(restart_s, 2),
        "counts": dict(soak.counts),
        "resident_bytes": resident,
        "faults": soak.faults,
        "environment": environment,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False)
    click.echo(text)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(soak.faults))


def check_log(log: Path, soak: Soak) -> None:
    """No request failed by the server's own fault, and no traceback was logged."""
    statuses: Counter[int] = Counter()
    for line in log.read_text(encoding="utf-8").splitlines():
        if not line.startswith("{"):
            soak.fault(f"the log has {line[:200]}")
            continue
        entry = json.loads(line)
        statuses[entry.get("status", 0)] += 1
        soak.check(entry["event"] != "failed", f"the log has {line[:500]}")
    soak.counts.update({f"status {status}": count for status, count in statuses.items() if status})
    soak.check(not statuses[500], f"{statuses[500]} requests ended with status 500")


if __name__ == "__main__":
    main()
