"""Our runtime, as in `megrez bench`: run by benchmarks/speed.py.

python run_megrez.py BUNDLE THREADS OUTPUT_TOKENS STREAMS, then as turns.py says

The loop is that of the server. Several streams are those of `LLM.generate`, which reads all prompts before anything
decodes and returns when all are done.
"""

import sys
from collections.abc import Callable

from turns import Line, prompts_of, serve, timed, timed_whole

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

    def ignore(token: object) -> None: ...

    def add(one: list[int], tokens: int | None) -> None:
        params, is_awaited = SamplingParams(max_tokens=tokens), streams == 1
        found = Request(prompt_ids=one, params=params, sink=ignore, reuse_prefix=False, is_awaited=is_awaited)
        engine.add(found)

    def generate() -> Line:
        if streams > 1:
            return timed_whole(len(prompt), output_tokens, run_all, streams=streams)
        engine.clear()
        add(prompt, None)
        return timed(len(prompt), output_tokens, first, engine.step)

    def first() -> None:
        while engine.waiting or any(one.is_prefilling for one in engine.running):
            engine.step()

    def run_all(tokens: int) -> None:
        for one in prompts_of(prompt, streams):
            add(one, tokens)
        while not engine.is_idle:
            engine.step()

    return {"version": version("megrez-compile"), "bytes": bundle.size}, generate


if __name__ == "__main__":
    restart_with_huge_pages()
    serve(opened)
