"""Whether guided output keeps JSON schemas to the letter: published schemas with valid and invalid instances.

    python benchmarks/guided_schemas.py BUNDLE [--bench FOLDER] [--suite FOLDER] [--count 300] [--walks 4]
        [--generate 50] [--judge PYTHON]

--bench: maskbench/data of https://github.com/guidance-ai/jsonschemabench, of which --count files are drawn by a seed.
--suite: tests/draft2020-12 of https://github.com/json-schema-org/JSON-Schema-Test-Suite, whose required tests are all
taken. Each schema is compiled. A refusal must be a UsageError that names what it refuses. Where a schema is accepted,
every instance goes through its matcher token by token, in several spellings: no invalid one may be accepted.
--walks: answers of random allowed tokens. --generate: schemas whose answers BUNDLE's model generates. The Python of
--judge, which has jsonschema[format], validates both. Exits with 1 where an invalid instance or answer was accepted, or
a refusal names nothing.
"""

import argparse
import collections
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from schema_judge import JUDGE_FAILED

from megrez.runtime import LLM, SamplingParams
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import MegrezError, UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.serving.guided import Grammar, GuidedCompiler
from megrez.runtime.text import Text

WALK_TOKENS, ANSWER_TOKENS, CONTEXT = 300, 256, 1024
# Allowed tokens that end something are taken this often, so that random answers end too.
ENDING = 0.7
Answer = tuple[str, Any, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """instances: with whether they are valid."""

    name: str
    schema: Any
    instances: list[tuple[Any, bool]]


@dataclass(slots=True)
class Tally:
    compiled: list[tuple[Case, Grammar]] = field(default_factory=list)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    unnamed: list[str] = field(default_factory=list)
    accepted_valid: int = 0
    rejected_valid: list[str] = field(default_factory=list)
    rejected_invalid: int = 0
    accepted_invalid: list[str] = field(default_factory=list)


def of_bench(folder: Path, count: int) -> list[Case]:
    files = sorted(folder.glob("*.json"))
    cases = []
    for file in random.Random(0).sample(files, min(count, len(files))):
        found = json.loads(file.read_text())
        instances = [(one["data"], one["valid"]) for one in found["tests"]]
        cases.append(Case(name=file.stem, schema=found["schema"], instances=instances))
    return cases


def of_suite(folder: Path) -> list[Case]:
    """The required tests: those of optional/ and of formats are not."""
    cases = []
    for file in sorted(folder.glob("*.json")):
        for group in json.loads(file.read_text()):
            instances = [(one["data"], one["valid"]) for one in group["tests"]]
            name = f"{file.stem}: {group['description']}"
            cases.append(Case(name=name, schema=group["schema"], instances=instances))
    return cases


def spellings(instance: Any, schema: Any) -> list[str]:
    """JSON texts of the instance: as given, and with keys in the order in which the schema names them."""
    order: dict[str, int] = {}
    note_keys(schema, order)
    ordered = sort_keys(instance, order)
    texts = [
        json.dumps(ordered, ensure_ascii=False, separators=(",", ":")),
        json.dumps(ordered, ensure_ascii=False),
        json.dumps(instance, ensure_ascii=False),
        json.dumps(ordered, indent=2),
    ]
    return list(dict.fromkeys(texts))


def note_keys(schema: Any, order: dict[str, int]) -> None:
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict):
        constants = [one for one in (schema.get("const"), *schema.get("enum", ())) if isinstance(one, dict)]
        for name in (name for names in (schema.get("properties", ()), *constants) for name in names):
            order.setdefault(name, len(order))
    for child in children:
        note_keys(child, order)


def sort_keys(value: Any, order: dict[str, int]) -> Any:
    if isinstance(value, list):
        return [sort_keys(one, order) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: sort_keys(value[name], order) for name in sorted(value, key=lambda one: order.get(one, len(order)))}


def accepts(grammar: Grammar, text: Text, stops: set[int], answer: str) -> bool:
    matcher, ended = grammar.matcher(), False
    try:
        for token in text.encode(answer, add_bos=False):
            if ended or not matcher.allowed()[token]:
                return False
            ended = matcher.push(token)
        return ended or bool(matcher.allowed()[list(stops)].any())
    except MegrezError as error:
        print(f"  failed within {answer[:60]}: {error}")
        return False


def words(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema
    for one in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from words(one)
    if isinstance(schema, str | bool):
        yield json.dumps(schema).strip('"')


def check(cases: Iterable[Case], compiler: GuidedCompiler, text: Text, stops: set[int]) -> Tally:
    tally = Tally()
    for case in cases:
        try:
            grammar = compiler.compile(Guided(json_schema=case.schema))
        except UsageError as error:
            message = str(error)
            tally.refused[kind_of(message)] += 1
            if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words(case.schema) if word):
                tally.unnamed.append(f"{case.name}: {message}")
            continue
        tally.compiled.append((case, grammar))
        for instance, valid in case.instances:
            accepted = [one for one in spellings(instance, case.schema) if accepts(grammar, text, stops, one)]
            shown = f"{case.name}: {json.dumps(instance)[:100]}"
            if valid and accepted:
                tally.accepted_valid += 1
            elif valid:
                tally.rejected_valid.append(shown)
            elif accepted:
                tally.accepted_invalid.append(f"{shown}, as {accepted[0]!r:.80}")
            else:
                tally.rejected_invalid += 1
    return tally


def kind_of(message: str) -> str:
    """A refusal without its particulars."""
    quoted = re.search(r'uses ("[^"]+") at', message)
    found = quoted[1] if quoted else message.removeprefix("guided output cannot honour this: ")
    return re.sub(r"\d+", "N", found)[:70]


def random_answer(grammar: Grammar, text: Text, stops: set[int], seed: int, ending: np.ndarray) -> str | None:
    """The text of random allowed tokens; None where it has no end after WALK_TOKENS."""
    source, matcher = np.random.default_rng(seed), grammar.matcher()
    ids: list[int] = []
    while len(ids) < WALK_TOKENS:
        allowed = matcher.allowed()
        if allowed[list(stops)].any() and (not ids or source.random() < ENDING):
            return text.decode(ids)
        allowed[list(stops)] = False
        choice = np.flatnonzero(allowed & ending)
        if not len(choice) or source.random() > ENDING:
            choice = np.flatnonzero(allowed)
        if not len(choice):
            return text.decode(ids)
        ids.append(int(source.choice(choice)))
        if matcher.push(ids[-1]):
            return text.decode(ids)
    return None


def walk(tally: Tally, text: Text, stops: set[int], vocab_size: int, walks: int) -> Iterator[Answer]:
    ending = np.zeros(vocab_size, np.bool_)
    ending[[token for mark in ('"', "}", "]", ",", ":", "{", "[", "0", "7", "a") for token in text.encode(mark)]] = True
    for case, grammar in tally.compiled:
        for seed in range(walks):
            try:
                answer = random_answer(grammar, text, stops, seed, ending)
            except MegrezError as error:
                print(f"  {case.name}: a random answer failed: {error}")
                continue
            if answer is not None:
                yield case.name, case.schema, answer


def generate(tally: Tally, bundle: Path, count: int, threads: int) -> Iterator[Answer]:
    """The model's answers to `count` of the schemas; those cut at the limit say so and are only counted."""
    cases = [case for case, _ in tally.compiled]
    drawn = random.Random(1).sample(cases, min(count, len(cases)))
    with LLM(bundle, slots=8, threads=threads, context=CONTEXT) as llm:
        prompts = [
            llm.encode_chat([{"role": "user", "content": f"Give an example of {one.name}, as JSON."}]) for one in drawn
        ]
        params = [SamplingParams(guided=Guided(json_schema=one.schema), max_tokens=ANSWER_TOKENS) for one in drawn]
        found = [one.outputs[0] for one in llm.generate(prompts, params)]
    reasons = collections.Counter(one.finish_reason for one in found)
    print(f"generated {len(found)} answers: {dict(reasons)}")
    for case, one in zip(drawn, found, strict=True):
        if one.finish_reason != "length":
            yield case.name, case.schema, one.text


def judged(python: str, answers: list[Answer]) -> int:
    """Print the verdicts; returns how many answers are not valid. Some patterns are beyond the judge."""
    lines = "".join(json.dumps({"schema": schema, "answer": answer}) + "\n" for _, schema, answer in answers)
    program = Path(__file__).with_name("schema_judge.py")
    done = subprocess.run([python, str(program)], input=lines, capture_output=True, text=True, check=True)
    faults, unjudged = [], 0
    for (name, _, answer), verdict in zip(answers, done.stdout.splitlines(), strict=True):
        unjudged += verdict.startswith(JUDGE_FAILED)
        if verdict != "valid" and not verdict.startswith(JUDGE_FAILED):
            faults.append(f"  {name}: {answer!r:.100}: {verdict}")
    print(f"answers that ended {len(answers)}, of which not judged {unjudged}, not valid {len(faults)}")
    print("\n".join(faults))
    return len(faults)


def report(name: str, cases: list[Case], tally: Tally) -> None:
    print(f"## {name}: {len(cases)} schemas, {len(tally.compiled)} accepted, {sum(tally.refused.values())} refused")
    print(
        f"valid instances accepted {tally.accepted_valid}, rejected {len(tally.rejected_valid)}; "
        f"invalid rejected {tally.rejected_invalid}, accepted {len(tally.accepted_invalid)}"
    )
    for title, found in (
        ("invalid, accepted", tally.accepted_invalid),
        ("valid, rejected", tally.rejected_valid),
        ("refusals that name nothing", tally.unnamed),
    ):
        print("\n".join([f"{title}: {len(found)}", *(f"  {one}" for one in found)]))
    print("refused: " + "; ".join(f"{why} ({count})" for why, count in tally.refused.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--walks", type=int, default=4)
    parser.add_argument("--generate", type=int, default=50)
    parser.add_argument("--judge")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    text, vocab_size = Text.open(bundle), bundle.manifest.architecture.vocab_size
    stops = set(bundle.manifest.tokens.stop)
    compiler = GuidedCompiler(text.tokenizer_json(), vocab_size=vocab_size, stop_ids=stops)
    wrong = 0
    sources = {
        "jsonschemabench": options.bench and of_bench(options.bench, options.count),
        "JSON-Schema-Test-Suite": options.suite and of_suite(options.suite),
    }
    for name, cases in sources.items():
        if not cases:
            continue
        tally = check(cases, compiler, text, stops)
        report(name, cases, tally)
        wrong += len(tally.accepted_invalid) + len(tally.unnamed)
        if options.judge:
            answers = list(walk(tally, text, stops, vocab_size, options.walks))
            if options.bench and name == "jsonschemabench":
                answers += generate(tally, options.bundle, options.generate, options.threads)
            wrong += judged(options.judge, answers)
    compiler.close()
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
