"""evalscope's OpenAI client completes a generation task from a local file against `megrez serve`.

    PYTHON benchmarks/harness_evalscope.py BUNDLE [--megrez .venv/bin/megrez] [--concurrent 4]

PYTHON is that of an environment with evalscope; torch is not needed. The task is general_qa over questions that this
script writes; evalscope posts them to /v1/chat/completions at temperature 0, plain and streaming. Prints its scores and
exits with 1 where an answer is missing or the streamed answers differ. BLEU is 0 where nltk's data is not installed.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness_lm_eval import serving

QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What colour is the sky on a clear day?", "The sky is blue on a clear day."),
    ("How many days does a week have?", "A week has seven days."),
    ("What do bees make?", "Bees make honey."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet do we live on?", "We live on Earth."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
)


def evaluate(url: str, model: str, folder: Path, concurrent: int, *, stream: bool) -> dict[str, Any]:
    """evalscope's report, with the answers by question."""
    from evalscope import TaskConfig, run_task

    work = folder / ("streaming" if stream else "plain")
    config = TaskConfig(
        model=model,
        api_url=f"{url}/v1",
        api_key="any",
        eval_type="openai_api",
        datasets=["general_qa"],
        dataset_args={"general_qa": {"local_path": str(folder), "subset_list": ["questions"]}},
        generation_config={"max_tokens": 48, "temperature": 0, "stream": stream},
        eval_batch_size=concurrent,
        work_dir=str(work),
        no_timestamp=True,
    )
    run_task(config)
    (report,) = (json.loads(path.read_text()) for path in work.rglob("reports/**/*.json"))
    lines = [line for path in work.rglob("predictions/**/*.jsonl") for line in path.read_text().splitlines()]
    return {"report": report, "answers": dict(map(answer, lines))}


def answer(line: str) -> tuple[int, str]:
    """The question's number and the model's answer, from a line of evalscope's predictions."""
    found = json.loads(line)
    return found["index"], found["model_output"]["choices"][0]["message"]["content"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--megrez", default=".venv/bin/megrez")
    parser.add_argument("--concurrent", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"query": query, "response": response}) + "\n" for query, response in QUESTIONS]
        (folder / "questions.jsonl").write_text("".join(lines))
        with serving(options.megrez, options.bundle, options.concurrent) as url:
            plain = evaluate(url, options.bundle.name, folder, options.concurrent, stream=False)
            streamed = evaluate(url, options.bundle.name, folder, options.concurrent, stream=True)
    print("evalscope", version("evalscope"))
    for metric in plain["report"]["metrics"]:
        identity = metric["identity"]
        print(identity["name"], *identity["dimensions"].values(), metric["score"])
    same = plain["answers"] == streamed["answers"]
    answered = sum(map(bool, plain["answers"].values()))
    print(f"{answered} of {len(QUESTIONS)} answered; streamed answers {'are the same' if same else 'differ'}")
    sys.exit(not same or answered != len(QUESTIONS))


if __name__ == "__main__":
    main()
