"""Runtimes that stay open, each in its own process, and generate on request: both ends of the pipe.

A process reads the prompt's ids as a line of JSON, opens its model, generates once as a warm-up and writes a line with
its version; then for every line it reads, it generates once and writes its speeds as a line. Imports only the standard
library: the processes run under different Pythons.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

Line = dict[str, Any]
Step = Callable[[], object]


def timed(prompt_tokens: int, output_tokens: int, first: Step, other: Step, *, streams: int = 1) -> Line:
    """Speeds of one generation: `first` reads the prompts and gives each stream a token, `other` gives each one more.

    Speeds are sums over the streams.
    """
    start = time.perf_counter()
    first()
    middle = time.perf_counter()
    for _ in range(output_tokens - 1):
        other()
    return {
        "prefill_tokens_per_s": streams * prompt_tokens / (middle - start),
        "decode_tokens_per_s": streams * (output_tokens - 1) / (time.perf_counter() - middle),
    }


def timed_whole(prompt_tokens: int, output_tokens: int, generate: Callable[[int], object], *, streams: int) -> Line:
    """The same for a runtime that returns when all is done: one token a stream first, then all of them."""
    start = time.perf_counter()
    generate(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    generate(output_tokens)
    rest = time.perf_counter() - start - first
    return {
        "prefill_tokens_per_s": streams * prompt_tokens / first,
        "decode_tokens_per_s": streams * (output_tokens - 1) / rest,
    }


def prompts_of(prompt: list[int], streams: int) -> list[list[int]]:
    """A prompt per stream, of the same length: none begins as another does, so that no runtime reuses one's cache."""
    return [prompt[at:] + prompt[:at] for at in range(streams)]


def resident_bytes(kind: str = "RssAnon") -> int:
    """Memory of this process as Linux counts it: that no file backs, or with RssFile what files back."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{kind}:"))


def serve(opened: Callable[[list[int]], tuple[Line, Callable[[], Line]]]) -> None:
    """The runtime's end of the pipe. opened: from the prompt's ids to a description and a function that generates."""
    output = os.dup(1)
    os.dup2(2, 1)  # libraries must not print to the pipe

    def answer(line: Line) -> None:
        os.write(output, json.dumps(line).encode() + b"\n")

    about, generate = opened(json.loads(sys.stdin.readline()))
    generate()
    answer(about)
    for _ in sys.stdin:
        answer(generate())


class Runtime:
    """The benchmark's end of the pipe: a process started by `opened_runtime`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], prompt: list[int]) -> None:
        self._process, self._errors = process, errors
        self.about = self._ask(json.dumps(prompt))

    def generate(self) -> Line:
        """Speeds of one generation; RuntimeError where the process ends instead."""
        return self._ask("")

    def _ask(self, line: str) -> Line:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer: Line = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self._process.args}\n{self._errors.read()[-2000:]}") from error
        return answer


@contextlib.contextmanager
def opened_runtime(command: Sequence[object], prompt: list[int]) -> Iterator[Runtime]:
    """A runtime whose model is loaded and warm; raises RuntimeError with its process's output where that fails."""
    words = [str(word) for word in command]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        try:
            yield Runtime(process, errors, prompt)
        finally:
            process.kill()
