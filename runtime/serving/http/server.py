"""The process around the application: its socket, its signals, and how it ends; knows no endpoint."""

import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from megrez.runtime.errors import UsageError
from megrez.runtime.serving.http.app import Limits, build_app
from megrez.runtime.serving.http.log import log
from megrez.runtime.serving.http.served import Served

# After the drain all clients have been answered; this is for clients that do not read.
_GRACE_S = 10


class Server(uvicorn.Server):
    """uvicorn's, which stops accepting on SIGTERM and Ctrl-C, lets requests finish for `drain_s` and then ends them.

    on_ready: called once connections are accepted.
    """

    def __init__(
        self, served: Served, limits: Limits, *, drain_s: float, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            build_app(served, limits),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(drain_s) + _GRACE_S,
        )
        super().__init__(config)
        self._served, self._drain_s, self._on_ready = served, drain_s, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs or say so to each client; then the model is closed."""
        self._served.draining = True
        log.info("draining", extra={"fields": {"seconds": self._drain_s}})
        ending = asyncio.create_task(self._end_later())
        await super().shutdown(sockets)
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ending

    async def _end_later(self) -> None:
        await asyncio.sleep(self._drain_s)
        await asyncio.to_thread(self._served.close)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._served.draining = True
        super().handle_exit(sig, frame)

    def serve_until_signal(self, listener: socket.socket) -> None:
        """Blocks. uvicorn raises the signals it took again when it has ended: they then meet these handlers too."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def listening(host: str, port: int, uds: Path | None) -> Iterator[tuple[socket.socket, str]]:
    """A bound socket and its address, as a client is given it; connections are refused until the server accepts them.

    Raises UsageError for an address that cannot be had. The socket's file is removed at the end.
    """
    try:
        bound = _bind_tcp(host, port) if uds is None else _bind_file(uds)
    except OSError as error:
        where, option = (f"{host}:{port}", "--port") if uds is None else (str(uds), "--uds")
        reason = error.strerror or error
        raise UsageError(f"{where} cannot be listened on ({reason}): choose another with {option}") from error
    try:
        if uds is None:
            shown = f"[{host}]" if ":" in host else host
            yield bound, f"http://{shown}:{bound.getsockname()[1]}"
        else:
            yield bound, f"unix:{uds}"
    finally:
        bound.close()
        if uds is not None:
            uds.unlink(missing_ok=True)


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_file(path: Path) -> socket.socket:
    """Bind a Unix socket, replacing a socket file on which no process listens."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            if _is_listened_on(path):
                raise OSError(errno.EADDRINUSE, "another server listens on it")
            path.unlink()
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    return bound


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
