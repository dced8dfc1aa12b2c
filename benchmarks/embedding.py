"""A C program over libmegrez beside `megrez run`: the same text and ids, and the medians of runs in turns.

python benchmarks/embedding.py BUNDLE [--tokens 64] [--rounds 7] [--threads 1]

It compiles embedding.c with cc. Each program runs once before it is measured. From process start: for one token.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MEGREZ = Path(sys.executable).parent / "megrez"
PROMPT = "Once upon a time there was a small town by the sea, and in that town lived"
SAMPLING = {"greedy": {"temperature": 0}, "seeded": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    ids: tuple[int, ...]
    first_ms: float
    tokens_per_s: float


def compile_program(folder: str) -> Path:
    flags = subprocess.check_output([MEGREZ, "capi", "--cflags", "--libs"], text=True).split()
    program = Path(folder) / "embedding"
    subprocess.run(["cc", "-O2", HERE / "embedding.c", "-o", program, *flags, "-ldl"], check=True)
    return program


def of_c(program: Path, arguments: argparse.Namespace, tokens: int, sampling: dict[str, float]) -> Answer:
    request = json.dumps({"prompt": PROMPT, "max_tokens": tokens, **sampling})
    command = [program, arguments.bundle, str(arguments.threads), request]
    phases, _, told = subprocess.check_output(command, text=True).partition("ids:")
    ids, _, text = told.partition("\n")
    first = re.search(r"^first token +(\d+) ms", phases, re.MULTILINE)
    rest = re.search(r"^(\d+) tokens after it +(\d+) ms", phases, re.MULTILINE)
    assert first is not None and rest is not None, phases
    speed = int(rest[1]) / max(int(rest[2]), 1) * 1000
    return Answer(text=text, ids=tuple(map(int, ids.split())), first_ms=float(first[1]), tokens_per_s=speed)


def of_run(arguments: argparse.Namespace, tokens: int, sampling: dict[str, float]) -> Answer:
    options = [part for name, value in sampling.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [MEGREZ, "run", arguments.bundle, PROMPT, "--raw", "--json", "--max-tokens", str(tokens), *options]
    found = json.loads(subprocess.check_output([*command, "--threads", str(arguments.threads)], text=True))
    return Answer(
        text=found["text"],
        ids=tuple(found["token_ids"]),
        first_ms=found["ttft_s"] * 1000,
        tokens_per_s=found["decode_tokens_per_s"] or 0,
    )


def seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(folder)
        for name, sampling in SAMPLING.items():
            ours, theirs = of_c(program, given, given.tokens, sampling), of_run(given, given.tokens, sampling)
            same = (ours.text, ours.ids) == (theirs.text, theirs.ids)
            print(f"{name}: {len(ours.ids)} tokens, text and ids {'identical' if same else 'DIFFERENT'}", flush=True)
        greedy = SAMPLING["greedy"]
        pairs = [
            (of_c(program, given, given.tokens, greedy), of_run(given, given.tokens, greedy))
            for _ in range(given.rounds)
        ]
        starts = [
            (seconds(lambda: of_c(program, given, 1, greedy)), seconds(lambda: of_run(given, 1, greedy)))
            for _ in range(given.rounds)
        ]
    print(f"{'medians of ' + str(given.rounds):<32}{'C program':>12}{'megrez run':>12}")
    for label, values in (
        ("tokens/s after the first", [(c.tokens_per_s, run.tokens_per_s) for c, run in pairs]),
        ("first token after opening, ms", [(c.first_ms, run.first_ms) for c, run in pairs]),
        ("process start to its end, s", starts),
    ):
        c, run = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{label:<32}{c:12.2f}{run:12.2f}")
    ratios = sorted(c.tokens_per_s / run.tokens_per_s for c, run in pairs)
    print(f"tokens/s, C over run, of each pair: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
