"""HTTP/1.1 over asyncio's streams, as much of it as a benchmark needs: one request at a time per connection."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from megrez.runtime.errors import UsageError

Found = TypeVar("Found")
_CUT = "it closed the connection in the middle of an answer"


class BrokenConnectionError(Exception):
    """The connection was refused, was closed too early, was silent for too long, or the answer is not HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """socket: the path of a unix socket, over which HTTP is spoken instead of TCP."""

    host: str
    port: int
    is_tls: bool
    prefix: str
    socket: str | None = None

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Of http://host:port, perhaps with a path, or of unix:PATH; a last /v1 is left out. Raises UsageError."""
        if url.startswith("unix:"):
            path = url.removeprefix("unix:").removeprefix("//")
            if not path:
                raise UsageError(f"--url {url} names no socket: give one as unix:/run/megrez.sock")
            return cls(host="localhost", port=80, is_tls=False, prefix="", socket=path)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url} is no address of a server: give one as http://127.0.0.1:8000 or unix:PATH")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls, prefix=prefix)

    @property
    def is_this_machine(self) -> bool:
        return self.host in ("localhost", "127.0.0.1", "::1")


class SilentError(BrokenConnectionError):
    """The server sent nothing for too long."""


class Watched:
    """A stream reader that raises SilentError after timeout_s seconds without a byte.

    One timer per connection: asyncio.wait_for would start a task for every piece of a stream.
    """

    def __init__(self, reader: asyncio.StreamReader, timeout_s: float) -> None:
        self.reader, self._timeout_s = reader, timeout_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From here on an answer is expected."""
        self._last = self._loop.time()
        self._timer = self._loop.call_later(self._timeout_s, self._check)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def read(self, reading: Awaitable[bytes]) -> bytes:
        """What one of the reader's methods gives; raises BrokenConnectionError."""
        try:
            found = await reading
        except asyncio.IncompleteReadError:
            raise BrokenConnectionError(_CUT) from None
        except (OSError, ValueError) as error:
            raise BrokenConnectionError(str(error) or type(error).__name__) from error
        self._last = self._loop.time()
        return found

    def _check(self) -> None:
        left = self._last + self._timeout_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self.reader.set_exception(SilentError(f"it was silent for {self._timeout_s:g} s"))


class Response:
    """status, and the body, which is read as it comes; raises BrokenConnectionError."""

    def __init__(self, status: int, headers: dict[str, str], watched: Watched) -> None:
        self.status, self._headers, self._watched, self._reader = status, headers, watched, watched.reader
        self.is_whole = False

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take another request."""
        return self.is_whole and self._headers.get("connection", "").lower() != "close"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body's bytes."""
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while size := await self._chunk_size():
                yield await self._read(self._reader.readexactly(size))
                await self._read(self._reader.readexactly(2))
            while (await self._read(self._reader.readline())).strip():
                pass  # trailers
        elif (length := self._headers.get("content-length", "")).isdigit():
            yield await self._read(self._reader.readexactly(int(length)))
        else:
            while piece := await self._read(self._reader.read(1 << 16)):
                yield piece
            self._watched.stop()
            return  # ended by closing
        self._watched.stop()
        self.is_whole = True

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of server-sent events."""
        rest = b""
        async for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()

    async def _chunk_size(self) -> int:
        line = await self._read(self._reader.readline())
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise BrokenConnectionError(_CUT) from None

    async def _read(self, reading: Awaitable[bytes]) -> bytes:
        return await self._watched.read(reading)


class Connection:
    """Opened by the first request."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._streams: tuple[Watched, asyncio.StreamWriter] | None = None

    @property
    def is_open(self) -> bool:
        return self._streams is not None and not self._streams[0].reader.at_eof()

    async def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Response:
        """Send a request and read the head of its response."""
        if self._streams is None:
            reader, writer = await self._within(self._open())
            self._streams = Watched(reader, self._timeout_s), writer
        watched, writer = self._streams
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        lines = [f"{method} {self._address.prefix}{path} HTTP/1.1", f"host: {host}:{self._address.port}"]
        lines += [f"{name}: {value}" for name, value in {**headers, "content-length": len(body)}.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self._within(writer.drain())
        watched.start()
        return await _read_head(watched)

    async def close(self) -> None:
        if self._streams is None:
            return
        watched, writer = self._streams
        self._streams = None
        watched.stop()
        writer.close()
        with contextlib.suppress(OSError, BrokenConnectionError):
            await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._address.socket is not None:
            return await asyncio.open_unix_connection(self._address.socket)
        context = ssl.create_default_context() if self._address.is_tls else None
        return await asyncio.open_connection(self._address.host, self._address.port, ssl=context)

    async def _within(self, doing: Coroutine[None, None, Found]) -> Found:
        try:
            return await asyncio.wait_for(doing, self._timeout_s)
        except asyncio.TimeoutError:
            raise SilentError(f"it was silent for {self._timeout_s:g} s") from None
        except OSError as error:
            raise BrokenConnectionError(error.strerror or str(error) or type(error).__name__) from error


async def _read_head(watched: Watched) -> Response:
    status = (await watched.read(watched.reader.readline())).split()
    if len(status) < 2 or not status[0].startswith(b"HTTP/") or not status[1].isdigit():
        raise BrokenConnectionError("it speaks no HTTP" if status else _CUT)
    headers: dict[str, str] = {}
    while line := (await watched.read(watched.reader.readline())).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Response(int(status[1]), headers, watched)
