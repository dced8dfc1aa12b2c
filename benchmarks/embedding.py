"""A C program over libmegrez beside `megrez run`: the same text and ids, and paired runs in alternating order.

python benchmarks/embedding.py BUNDLE [--tokens 128] [--pairs 16] [--threads 2] [--json FILE]

It compiles embedding.c with cc. Tokens per second: from the first token to the last, as each program measures them,
without drafted tokens. First token: after the model was opened. CPU seconds: of the whole process. What is printed are
medians, and the median and quartiles of the ratios within pairs.
"""

import argparse
import json
import re
import resource
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
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7}
MEASURED = {"tokens/s after the first": "tokens_per_s", "first token, ms": "first_ms", "CPU, s": "cpu_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    ids: tuple[int, ...]
    first_ms: float
    tokens_per_s: float
    cpu_s: float
    wall_s: float


def compile_program(folder: str) -> Path:
    flags = subprocess.check_output([MEGREZ, "capi", "--cflags", "--libs"], text=True).split()
    program = Path(folder) / "embedding"
    subprocess.run(["cc", "-O2", HERE / "embedding.c", "-o", program, *flags, "-ldl"], check=True)
    return program


def run(command: list[str | Path]) -> tuple[str, float, float]:
    """What it prints, and how many seconds it took, of CPU and in all."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.check_output(command, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return told, cpu_s, time.perf_counter() - began


def of_c(program: Path, given: argparse.Namespace, tokens: int, sampling: dict[str, float]) -> Answer:
    request = json.dumps({"prompt": PROMPT, "max_tokens": tokens, **sampling})
    told, cpu_s, wall_s = run([program, given.bundle, str(given.threads), request])
    phases, _, rest = told.partition("ids:")
    ids, _, text = rest.partition("\n")
    first = re.search(r"^first token +([\d.]+) ms", phases, re.MULTILINE)
    others = re.search(r"^(\d+) tokens after it +([\d.]+) ms", phases, re.MULTILINE)
    assert first is not None and others is not None, phases
    return Answer(
        text=text,
        ids=tuple(map(int, ids.split())),
        first_ms=float(first[1]),
        tokens_per_s=int(others[1]) / max(float(others[2]), 0.01) * 1000,
        cpu_s=cpu_s,
        wall_s=wall_s,
    )


def of_run(given: argparse.Namespace, tokens: int, sampling: dict[str, float]) -> Answer:
    options = [part for name, value in sampling.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [MEGREZ, "run", given.bundle, PROMPT, "--raw", "--json", "--speculate", "off", *options]
    told, cpu_s, wall_s = run([*command, "--max-tokens", str(tokens), "--threads", str(given.threads)])
    found = json.loads(told)
    return Answer(
        text=found["text"],
        ids=tuple(found["token_ids"]),
        first_ms=found["ttft_s"] * 1000,
        tokens_per_s=found["decode_tokens_per_s"] or 0,
        cpu_s=cpu_s,
        wall_s=wall_s,
    )


def pairs_of(program: Path, given: argparse.Namespace, tokens: int) -> list[tuple[Answer, Answer]]:
    """(C program, megrez run), which take turns at being first."""
    found = []
    for at in range(given.pairs):
        sides = [lambda: of_c(program, given, tokens, GREEDY), lambda: of_run(given, tokens, GREEDY)]
        order = (0, 1) if at % 2 == 0 else (1, 0)
        answers = {side: sides[side]() for side in order}
        found.append((answers[0], answers[1]))
    return found


def summary(pairs: list[tuple[Answer, Answer]], field: str) -> dict[str, float]:
    """Medians of both sides; for the ratio of C to megrez run, and their difference, the quartiles too."""
    c, run = zip(*((getattr(one, field), getattr(other, field)) for one, other in pairs), strict=True)
    low, median, high = statistics.quantiles([one / other for one, other in zip(c, run, strict=True)], n=4)
    return {
        "c": statistics.median(c),
        "run": statistics.median(run),
        "ratio": median,
        "ratio_low": low,
        "ratio_high": high,
        "difference": statistics.median(one - other for one, other in zip(c, run, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(folder)
        for name, sampling in {"greedy": GREEDY, "seeded": SEEDED}.items():
            ours = of_c(program, given, given.tokens, sampling)
            theirs = of_run(given, given.tokens, sampling)
            same = (ours.text, ours.ids) == (theirs.text, theirs.ids)
            print(f"{name}: {len(ours.ids)} tokens, text and ids {'identical' if same else 'DIFFERENT'}", flush=True)
        pairs, short = pairs_of(program, given, given.tokens), pairs_of(program, given, 1)
    results = [{"name": label, **summary(pairs, field)} for label, field in MEASURED.items()]
    results.append({"name": "from start to end for one token, s", **summary(short, "wall_s")})
    print(f"{f'medians of {given.pairs} pairs':<36}{'C program':>11}{'megrez run':>11}  C over run (quartiles)")
    for one in results:
        ratio = "{ratio:.3f} ({ratio_low:.3f} to {ratio_high:.3f})".format(**one)
        print(f"{one['name']:<36}{one['c']:11.2f}{one['run']:11.2f}  {ratio}")
    if given.json is not None:
        kept = {field: [[getattr(one, field) for one in pair] for pair in pairs] for field in MEASURED.values()}
        told = {"tokens": given.tokens, "threads": given.threads, "results": results, "pairs": kept}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
