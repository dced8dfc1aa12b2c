"""`megrez serve` as a process of its own, seen from outside: its address, its metrics, its memory and its end."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megrez.runtime.bench.connection import Address, Connection

TIMEOUT_S = 600.0
JSON = {"content-type": "application/json"}


@dataclass(slots=True, kw_only=True)
class Served:
    """log: a file with the server's standard error."""

    process: "subprocess.Popen[str]"
    address: Address
    log: Path

    def connection(self) -> Connection:
        return Connection(self.address, TIMEOUT_S)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have these labels."""
        connection = self.connection()
        try:
            body = await (await connection.request("GET", "/metrics", b"", {})).body()
        finally:
            await connection.close()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in body.decode().splitlines() if re.match(rf"{re.escape(name)}[{{ ]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))

    def resident_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


@contextlib.contextmanager
def served(bundle: Path, log: Path, *options: object, port: int = 0) -> Iterator[Served]:
    """A server that accepts requests; it is killed at the end where it still runs."""
    command = [str(Path(sys.executable).with_name("megrez")), "serve", str(bundle), "--port", str(port)]
    with (
        log.open("a", encoding="utf-8") as errors,
        subprocess.Popen([*command, *map(str, options)], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://[\d.]+:\d+", line)
            if not found:
                raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")
            yield Served(process=process, address=Address.parse(found[0]), log=log)
        finally:
            if process.poll() is None:
                process.kill()


@dataclass(slots=True)
class Reply:
    """An answer so far. status: None before its head has come. error: in its stream, or its body."""

    status: int | None = None
    text: str = ""
    pieces: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    is_whole: bool = False

    def take(self, event: dict[str, Any]) -> None:
        """One event of a stream, or a whole body."""
        self.error = event.get("error") or self.error
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            said = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            self.text += said
            self.pieces += 1
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


async def ask(connection: Connection, path: str, body: dict[str, Any] | bytes, reply: Reply) -> AsyncIterator[Reply]:
    """`reply` after every piece of the answer; it is whole at the end."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await connection.request("POST", path, raw, JSON)
    reply.status = response.status
    if response.status == 200 and isinstance(body, dict) and body.get("stream"):
        async for data in response.events():
            if data == b"[DONE]":
                reply.is_whole = True
            else:
                reply.take(json.loads(data))
                yield reply
        return
    reply.take(json.loads(await response.body()))
    reply.is_whole = True
    yield reply


async def answer(server: Served, path: str, body: dict[str, Any] | bytes) -> Reply:
    """The whole answer, over a connection of its own."""
    connection, reply = server.connection(), Reply()
    try:
        async for _ in ask(connection, path, body, reply):
            pass
    finally:
        await connection.close()
    return reply


async def until(holds: Any, *, seconds: float = 60.0) -> bool:
    """Whether the coroutine function `holds` comes true within so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await holds():
        if loop.time() > end:
            return False
        await asyncio.sleep(0.05)
    return True
