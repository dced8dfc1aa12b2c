"""One long prompt: prefill speed by chunk, decode after it, and resident memory against the stated budget.

python benchmarks/long_prompt.py BUNDLE [--tokens 30000] [--chunk 512] [--threads 2] [--output 16]

The stated budget is the files and the KV cache of the prompt; what is resident is Linux's count.
"""

import time
from pathlib import Path

import click
import numpy as np

from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.huge_pages import restart_with_huge_pages


def resident(kind: str) -> int:
    """Bytes of this process in memory: RssAnon, without what files back, or RssFile."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=30000, show_default=True)
@click.option("--chunk", default=512, show_default=True, help="Tokens of a step.")
@click.option("--threads", default=2, show_default=True)
@click.option("--output", default=16, show_default=True, help="Tokens decoded after the prompt.")
def main(bundle: Path, tokens: int, chunk: int, threads: int, output: int) -> None:
    opened = open_bundle(bundle)
    session = open_session(opened, threads=threads)
    prompt = np.random.default_rng(0).integers(session.vocab_size, size=tokens)
    session.step(prompt[:chunk], [0], [0])  # buffers of a chunk
    session.step(prompt[:1], [chunk], [0])
    before = resident("RssAnon")
    begun, used = time.perf_counter(), time.process_time()
    for start in range(0, tokens, chunk):
        piece = prompt[start : start + chunk]
        session.step(piece, [start], [len(piece) - 1] if start + chunk >= tokens else [])
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    print(f"prefill: {tokens / seconds:.1f} tokens/s, {tokens / used:.1f} per CPU second, chunks of {chunk}")
    begun = time.perf_counter()
    for at in range(output):
        session.step([at], [tokens + at], [0])
    print(f"decode at {tokens}: {output / (time.perf_counter() - begun):.1f} tokens/s")
    cache = opened.manifest.kv_cache.bytes_per_token * tokens
    files = sum(file.size for file in opened.manifest.files)
    after, mapped = resident("RssAnon"), resident("RssFile")
    print(f"KV cache: stated {cache / 1e6:.1f} MB, resident memory grew by {(after - before) / 1e6:.1f} MB")
    print(f"in all: {(files + cache) / 1e6:.1f} MB of files and cache, resident {(after + mapped) / 1e6:.1f} MB")


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
