"""Our runtime, as in `megrez bench`: run by benchmarks/speed.py.

python run_megrez.py BUNDLE THREADS OUTPUT_TOKENS STREAMS, then as turns.py says

The loop is that of the server. Of several streams the first ones decode while the last prompts are read, so that
"prefill" counts some decode too; all of them decode in every step of "decode".
"""

import sys
from collections.abc import Callable

from turns import Line, prompts_of, serve, timed

from megrez.runtime.huge_pages import restart_with_huge_pages


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    from importlib.metadata import version

    from megrez.runtime.bundle import open_bundle
    from megrez.runtime.engines import open_session
    from megrez.runtime.sampling import SamplingParams
    from megrez.runtime.serving.engine import Engine
    from megrez.runtime.serving.request import Request

    path, threads, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    bundle = open_bundle(path)
    session = open_session(bundle, threads=threads, slots=streams)
    engine = Engine(session, stop_ids=())

    def generate() -> Line:
        engine.clear()
        for one in prompts_of(prompt, streams):
            params = SamplingParams(max_tokens=None)
            engine.add(Request(prompt_ids=one, params=params, sink=lambda found: None, reuse_prefix=False))

        def first() -> None:
            engine.step()
            while engine.waiting or any(one.is_prefilling for one in engine.running):
                engine.step()

        return timed(len(prompt), output_tokens, first, engine.step, streams=streams)

    return {"version": version("megrez-compile"), "bytes": bundle.size}, generate


if __name__ == "__main__":
    restart_with_huge_pages()
    serve(opened)
