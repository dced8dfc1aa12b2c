"""llama.cpp and ik_llama.cpp at given numbers of cached tokens: shared by kv_llama_cpp.py and kv_ik_llama.py.

PEERS-PYTHON kv_llama_cpp.py FILE THREADS LENGTHS STEPS, then as turns.py says; LENGTHS is such as 4000,16000

Each length has a context of its own, into which a prompt of that length is read first. A step before those that are
timed touches what other runtimes' turns left cold.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from turns import Line, resident_bytes

Q8_0 = 8  # GGML_TYPE_Q8_0


class Context(Protocol):
    def read(self, tokens: Sequence[int], start: int) -> int:
        """Evaluate `tokens` from position `start` on; returns the likeliest next one."""

    def forget(self, start: int) -> None:
        """Remove the tokens from position `start` on."""


def opened_contexts(
    version: str, load: Callable[[str, int], Callable[[int], Context]], prompt: list[int]
) -> tuple[Line, Callable[[], Line]]:
    """load: from a file and a number of threads to a function that makes a context of a number of tokens."""
    path, threads, lengths, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
    context_of = load(path, threads)
    before = resident_bytes()
    contexts = {int(length): context_of(int(length) + 2 * steps) for length in lengths}
    about: Line = {"version": version}
    for length, context in contexts.items():
        start = time.perf_counter()
        context.read((prompt * (length // len(prompt) + 1))[:length], 0)
        about[f"prefill_{length}"] = length / (time.perf_counter() - start)

    def generate() -> Line:
        found = {}
        for length, context in contexts.items():
            context.read([0], length)
            start = time.perf_counter()
            for at in range(1, steps + 1):
                context.read([at], length + at)
            found[f"decode_{length}"] = steps / (time.perf_counter() - start)
            context.forget(length)
        return found

    return about | {"cache_bytes": resident_bytes() - before}, generate
