"""Programs run in processes of their own that need not import again: forked from one that has imported what they use.

`Forks` starts this file as that one; each test process has its own, for each list of modules.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

# Of calibration and of what traces. What a command imports of ours, and when, is tested in new interpreters.
COMPILER = (
    "onnx_ir.passes.common",
    "torch",
    "safetensors.numpy",
    "jinja2",
    "tokenizers",
    "filelock",
    "megrez.compile.cli",
)
# Of `megrez run`, `chat` and `bench`.
RUNTIME = (
    *("numpy.ma", "numpy.random", "numpy.typing", "jinja2.ext", "jinja2.sandbox", "tokenizers", "asyncio", "csv"),
    *("importlib.metadata", "importlib.resources", "zipfile"),
    *(f"megrez.runtime.commands.{verb}" for verb in ("run", "chat", "bench")),
    "megrez.runtime.model",
)
PID, STATUS = struct.Struct("i"), struct.Struct("i")


class Forked:
    """A process that was forked. stdout, stderr: where it has pipes of its own."""

    def __init__(self, told: io.FileIO, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._told, self.stdout, self.stderr = told, stdout, stderr
        (self.pid,) = PID.unpack(told.read(PID.size))
        self.returncode: int | None = None

    def runs(self, timeout: float = 0) -> bool:
        """Whether it has not ended, and does not within `timeout` seconds."""
        return self.returncode is None and not select.select([self._told], [], [], timeout)[0]

    def wait(self, timeout: float = 60) -> int:
        """The exit code, or a signal's number times -1. Kills what takes longer, and raises TimeoutExpired."""
        if self.returncode is None:
            if self.runs(timeout):
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            (status,) = STATUS.unpack(self._told.read(STATUS.size))
            self.returncode = os.waitstatus_to_exitcode(status)
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait, and return what it has said since, which a pipe must hold."""
        assert self.stdout is not None and self.stderr is not None
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """A process that has imported `modules`, and the programs that it runs."""

    def __init__(self, modules: Sequence[str]) -> None:
        own, given = socket.socketpair()
        with given:
            command = [sys.executable, __file__, str(given.fileno()), *modules]
            process = subprocess.Popen(command, pass_fds=[given.fileno()], stdin=subprocess.DEVNULL)
        self._socket = own
        atexit.register(process.wait)
        atexit.register(own.close)  # which ends the process

    def _send(self, program: str, args: Sequence[object], streams: Sequence[int], env: Mapping[str, str]) -> Any:
        """Run a program with file descriptors as its three streams; returns the file that tells its id and its end."""
        request = {"program": program, "args": [*map(str, args)], "env": {**os.environ, **env}, "cwd": str(Path.cwd())}
        told, telling = os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*streams, telling])
        finally:
            os.close(telling)
        return os.fdopen(told, "rb", buffering=0)

    def start(self, program: str, args: Sequence[object], *, env: Mapping[str, str] | None = None) -> Forked:
        """As subprocess.Popen does, with nothing to read and two pipes to write to, in UTF-8."""
        pipes = [os.pipe(), os.pipe()]
        with Path(os.devnull).open() as nothing:
            told = self._send(program, args, [nothing.fileno(), *(end for _, end in pipes)], env or {})
        for _, end in pipes:
            os.close(end)
        return Forked(told, *(os.fdopen(end, encoding="utf-8") for end, _ in pipes))

    def run(
        self, program: str, args: Sequence[object], *, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run does, in UTF-8."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(stdin.encode())
            files[0].seek(0)
            code = Forked(self._send(program, args, [file.fileno() for file in files], env or {})).wait()
            for file in files:
                file.seek(0)
            out, err = (file.read().decode() for file in files[1:])
            return subprocess.CompletedProcess([program, *args], code, out, err)


@functools.cache
def forks(modules: tuple[str, ...]) -> Forks:
    return Forks(modules)


def serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns it in the new process."""
    children: list[int] = []
    while True:
        request, streams, _, _ = socket.recv_fds(channel, 1 << 20, 4)
        children = [one for one in children if os.waitpid(one, os.WNOHANG if request else 0)[0] == 0]
        if not request:
            os._exit(0)
        children.append(os.fork())
        if children[-1] == 0:
            channel.close()
            return watched(json.loads(request), streams)
        for one in streams:
            os.close(one)


def watched(request: dict[str, Any], streams: list[int]) -> dict[str, Any]:
    """Fork once more: one of the two returns, the other tells its id and its exit status."""
    *streams, telling = streams
    pid = os.fork()
    if pid == 0:
        os.close(telling)
        for number, one in enumerate(streams):
            os.dup2(one, number)
            os.close(one)
        return request
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for one in (0, 1, 2, *streams):
        os.close(one)
    with contextlib.suppress(BrokenPipeError):
        os.write(telling, PID.pack(pid))
        os.write(telling, STATUS.pack(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Run the program as a new interpreter would."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    program = request["program"]
    sys.argv, sys.path[0] = [program, *request["args"]], str(Path(program).parent)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        former = getattr(sys, name)
        raw = open(("stdin", "stdout", "stderr").index(name), f"{mode}b", closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(raw, former.encoding, former.errors, line_buffering=name == "stderr")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
