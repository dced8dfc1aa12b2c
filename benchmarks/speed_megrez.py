"""Our runtime, as in `megrez bench`: run by benchmarks/speed.py.

python speed_megrez.py BUNDLE THREADS OUTPUT_TOKENS, then as turns.py says
"""

import sys
from collections.abc import Callable

from turns import Line, serve, timed

from megrez.runtime.huge_pages import restart_with_huge_pages


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    from importlib.metadata import version

    from megrez.runtime.bundle import open_bundle
    from megrez.runtime.engines import open_session
    from megrez.runtime.generate import generate as tokens_of
    from megrez.runtime.sampling import SamplingParams

    path, threads, output_tokens = sys.argv[1], *map(int, sys.argv[2:])
    bundle = open_bundle(path)
    session = open_session(bundle, threads=threads)

    def generate() -> Line:
        steps = tokens_of(session, prompt, SamplingParams(), stop_ids=(), max_tokens=output_tokens)
        return timed(len(prompt), output_tokens, lambda: next(steps), lambda: next(steps))

    return {"version": version("megrez-compile"), "bytes": bundle.size}, generate


if __name__ == "__main__":
    restart_with_huge_pages()
    serve(opened)
