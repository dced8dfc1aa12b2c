"""Answers a question from search results, with citations: the web-search loop of Megrez-3B-Instruct's model card.

python examples/websearch.py megrez-3b "Who built the Pantheon?" --search my_module:search
python examples/websearch.py megrez-3b "What is a bundle?" --folder docs

A search function takes a query and returns results: dicts with `title`, `url` and `summary`. The second form needs
none: it searches the paragraphs of the text files in a folder.
"""

import argparse
import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from megrez.runtime import Model, SamplingParams

Messages = list[dict[str, str]]
Result = dict[str, str]
Search = Callable[[str], Sequence[Result]]

PARAMS = SamplingParams(temperature=0.2, top_p=0.9, max_tokens=1024)
MOST_SEARCHES = 3
FUNCTIONS = [
    {
        "name": "googleWebSearch",
        "description": "Searches the web for what you do not know.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    }
]
SYSTEM = (
    "You have access to the following functions. Use them if required -\n"
    f"{json.dumps(FUNCTIONS, indent=4, ensure_ascii=False)}\n"
    "Cite the contexts that you answer from as [citation:x]."
)
CALL = re.compile(r"<\|function_start\|>(.*?)<\|function_end\|>", re.DOTALL)
CITATION = re.compile(r"\[citation:(\d+)\]")


def answer(ask: Callable[[Messages], str], search: Search, question: str) -> tuple[str, list[Result]]:
    """The model's answer and all results it was given; [citation:1] is the first of them."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    results: list[Result] = []
    for _ in range(MOST_SEARCHES):
        text = ask(messages)
        query = query_of(text)
        if query is None:
            return text, results
        fresh = search(query)
        contexts = [f"[[citation:{at}]]\n{one['summary']}" for at, one in enumerate(fresh, len(results) + 1)]
        results += fresh
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "observation", "content": "\n\n".join(contexts) or "No results."})
    return ask(messages), results


def query_of(text: str) -> str | None:
    """What the answer wants to search for; None where it calls nothing, or nothing that can be read."""
    called = CALL.search(text)
    try:
        return None if called is None else str(json.loads(called[1])["arguments"]["query"])
    except (ValueError, KeyError, TypeError):
        return None


def cited(text: str, results: Sequence[Result]) -> list[str]:
    """A line for each result that the answer cites."""
    numbers = sorted({int(number) for number in CITATION.findall(text)})
    return [f"[{at}] {results[at - 1]['title']} {results[at - 1]['url']}" for at in numbers if 1 <= at <= len(results)]


def folder_search(folder: Path, most: int = 5) -> Search:
    """Finds the paragraphs with the most words of the query."""
    paragraphs = [
        {"title": path.name, "url": path.as_uri(), "summary": paragraph.strip()}
        for path in sorted(folder.resolve().rglob("*"))
        if path.suffix in (".md", ".txt")
        for paragraph in path.read_text(encoding="utf-8").split("\n\n")
    ]

    def search(query: str) -> list[Result]:
        words = set(re.findall(r"\w+", query.lower()))
        scores = [len(words & set(re.findall(r"\w+", one["summary"].lower()))) for one in paragraphs]
        best = sorted(range(len(paragraphs)), key=lambda at: -scores[at])[:most]
        return [paragraphs[at] for at in best if scores[at]]

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("question")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--search", metavar="MODULE:FUNCTION")
    source.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.folder:
        search = folder_search(given.folder)
    else:
        module, _, function = given.search.partition(":")
        search = getattr(importlib.import_module(module), function)
    with Model.open(given.bundle) as model:
        text, results = answer(lambda messages: model.generate(messages, PARAMS).text, search, given.question)
    print("\n".join([text, *cited(text, results)]))


if __name__ == "__main__":
    main()
