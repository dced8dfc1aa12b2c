"""lm-eval's numbers through `megrez serve` beside those of its own `hf` backend: `local-completions` on three tasks.

    PYTHON benchmarks/harness_lm_eval.py CHECKPOINT BUNDLE TEXT [--megrez .venv/bin/megrez] [--concurrent 4]

PYTHON is that of an environment with lm-eval and torch. BUNDLE is CHECKPOINT compiled to cpu-fp32. The tasks read
local files that this script writes: questions with choices (loglikelihood), paragraphs of TEXT (loglikelihood_rolling)
and greedy continuations (generate_until). Prints the columns and exits with 1 where the server's printed digits or
answers are not those of `hf` with softmax_dtype=float64: torch's log_softmax in float32 is some 1e-5 too high per token
at this vocabulary, which moves a perplexity's fifth digit. Texts go over HTTP as token ids from the server's /tokenize.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTEXT, DIGITS = 1024, 4
TASKS, SERVED = ("choices", "rolling", "generation"), "megrez serve"
Results = dict[str, Any]

# question, choices; the first is right.
QUESTIONS = (
    ("The capital of France is", ("Paris", "Berlin", "a river", "seven")),
    ("Water freezes when it gets", ("cold", "loud", "green", "late")),
    ("A triangle has three", ("sides", "wheels", "seasons", "names")),
    ("Bees make", ("honey", "bread", "paper", "steel")),
    ("The opposite of up is", ("down", "left", "again", "far")),
    ("Plants need sunlight and", ("water", "music", "money", "shoes")),
    ("Ice is made of frozen", ("water", "sand", "wood", "milk chocolate")),
    ("The sun rises in the", ("east", "west", "sea", "evening")),
    ("One week has seven", ("days", "months", "hours", "years")),
    ("A person who flies an aeroplane is called a", ("pilot", "baker", "sailor", "painter")),
    ("The largest ocean on Earth is the", ("Pacific", "Atlantic", "Baltic", "Caspian")),
    ("To cut paper, people use", ("scissors", "a spoon", "a pillow", "soup")),
)
PROMPTS = (
    "The story begins in a small village where",
    "Three things to remember about the sea:",
    "Once upon a time, an old clockmaker",
    "def add(a, b):\n    return",
    "The recipe needs flour, eggs and",
    "In 1969, the first people",
    "1, 2, 3, 4, 5,",
    "The teacher asked the class why",
)
CHOICE_TASK = """
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING_TASK = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rolling.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
GENERATION_TASK = """
task: local_generation
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/generation.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, temperature: 0, max_gen_toks: 40}
metric_list: [{metric: exact_match}, {metric: bleu}]
"""


def write_tasks(folder: Path, text: str, paragraphs: int) -> None:
    pieces = [piece.strip() for piece in text.split("\n") if len(piece) > 400][:paragraphs]
    files = {
        "choices": [{"question": question, "choices": list(choices)} for question, choices in QUESTIONS],
        "rolling": [{"text": piece} for piece in pieces],
        "generation": [{"prompt": prompt, "target": "and then it was over."} for prompt in PROMPTS],
    }
    for name, documents in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    for name, task in (("choices", CHOICE_TASK), ("rolling", ROLLING_TASK), ("generation", GENERATION_TASK)):
        (folder / f"{name}.yaml").write_text(task.replace("FOLDER", str(folder)))


@contextlib.contextmanager
def serving(megrez: str, bundle: Path, slots: int) -> Iterator[str]:
    """The address of a server of one's own."""
    command = [megrez, "serve", str(bundle), "--port", "0", "--slots", str(slots), "--context", str(CONTEXT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+:\d+", process.stdout.readline())
            if found is None:
                raise SystemExit(f"{megrez} serve {bundle} did not start")
            yield found[0]
        finally:
            process.terminate()


def evaluate(model: str, arguments: dict[str, Any], folder: Path, tasks: Sequence[str]) -> Results:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found: Results = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[f"local_{task}" for task in tasks],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    return found


def metrics(results: Results) -> dict[str, float]:
    return {
        f"{task.removeprefix('local_')} {name.removesuffix(',none')}": value
        for task, values in sorted(results["results"].items())
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }


def answers(results: Results) -> dict[tuple[str, str], list[Any]]:
    """By task and document, what each request got: a log-likelihood with its greedy flag, or a text."""
    return {
        (task, one["doc_hash"]): [answer for (answer,) in one["resps"]]
        for task, samples in results["samples"].items()
        for one in samples
    }


def print_table(columns: dict[str, Results]) -> None:
    print(f"| task and metric | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    found = {name: metrics(results) for name, results in columns.items()}
    for metric in found[SERVED]:
        cells = [f"{one[metric]:.{DIGITS}f}" if metric in one else "" for one in found.values()]
        print(f"| {metric} | {' | '.join(cells)} |")


def compare(served: Results, other: Results) -> bool:
    """Print how far the answers differ; whether all printed digits, greedy flags and texts are the same."""
    flags = texts = 0
    log_likelihoods = [0.0]
    own = answers(served)
    for key, wanted in answers(other).items():
        for one, two in zip(own[key], wanted, strict=True):
            if isinstance(one, str):
                texts += one != two
                continue
            (one, flag), (two, other_flag) = (
                found if isinstance(found, list | tuple) else (found, 0) for found in (one, two)
            )
            log_likelihoods.append(abs(float(one) - float(two)))
            flags += bool(flag) != bool(other_flag)
    print(f"log-likelihoods differ by at most {max(log_likelihoods):.1e}; greedy flags: {flags}; texts: {texts}")
    ours = metrics(served)
    same = all(f"{ours[name]:.{DIGITS}f}" == f"{value:.{DIGITS}f}" for name, value in metrics(other).items())
    return same and not flags and not texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--megrez", default=".venv/bin/megrez")
    parser.add_argument("--concurrent", type=int, default=4)
    parser.add_argument("--paragraphs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, options.text.read_text(), options.paragraphs)
        with serving(options.megrez, options.bundle, options.concurrent) as url:
            # lm-eval keeps one token of max_length for the API's answer.
            arguments = {"model": options.bundle.name, "base_url": f"{url}/v1/completions", "max_length": CONTEXT}
            arguments |= {"num_concurrent": options.concurrent, "tokenizer_backend": "remote"}
            served = evaluate("local-completions", arguments, folder, TASKS)
        arguments = {"pretrained": str(options.checkpoint), "dtype": "float32", "device": "cpu"}
        arguments |= {"batch_size": 1, "max_length": CONTEXT - 1}
        exact = evaluate("hf", arguments | {"softmax_dtype": "float64"}, folder, TASKS)
        plain = evaluate("hf", arguments, folder, TASKS[:2])
    print("lm-eval", version("lm_eval"), "transformers", version("transformers"), "torch", version("torch"))
    print_table({"hf": plain, "hf, softmax_dtype=float64": exact, SERVED: served})
    print("hf: ", end="")
    compare(served, plain)
    print("hf, softmax_dtype=float64: ", end="")
    sys.exit(not compare(served, exact))


if __name__ == "__main__":
    main()
