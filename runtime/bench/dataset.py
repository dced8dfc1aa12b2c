"""Prompts from a file: JSON Lines of {"prompt": …}, or conversations in ShareGPT's form; knows no tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megrez.runtime.errors import UsageError

_FORMS = '{"prompt": "…"} or {"conversations": [{"from": "human", "value": "…"}, …]}'
_HUMANS = ("human", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """answer: the dataset's own, whose length the output may take. output_tokens: that length, if it is stated."""

    prompt: str
    answer: str | None = None
    output_tokens: int | None = None


def read_dataset(path: Path) -> list[Sample]:
    """The prompts of a file: one JSON object per line, or one JSON array of objects.

    An object has `prompt` and perhaps `output_tokens`, or `conversations`, of which the first question and its answer
    are taken; those without a question are left out. Raises UsageError that names the line at fault.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the dataset {path} cannot be read ({error}): give a file of JSON Lines") from error
    found = [sample for where, item in _items(path, text) if (sample := _sample(where, item)) is not None]
    if not found:
        raise UsageError(f"the dataset {path} has no prompt: give lines of {_FORMS}")
    return found


def _items(path: Path, text: str) -> list[tuple[str, Any]]:
    """Each JSON value and where it stands."""
    if text.lstrip().startswith("["):
        return [(f"{path}, item {n}", item) for n, item in enumerate(_parse(str(path), text), 1)]
    lines = enumerate(text.split("\n"), 1)
    return [(f"{path}, line {n}", _parse(f"{path}, line {n}", line)) for n, line in lines if line.strip()]


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error}): give {_FORMS}") from error


def _sample(where: str, item: Any) -> Sample | None:
    if isinstance(item, dict) and isinstance(item.get("conversations"), list):
        return _of_conversation(where, item["conversations"])
    prompt, length = (item.get("prompt"), item.get("output_tokens")) if isinstance(item, dict) else (None, None)
    if not isinstance(prompt, str) or not prompt:
        raise UsageError(f"{where} has no prompt: give {_FORMS}")
    if length is not None and (type(length) is not int or length < 1):
        raise UsageError(f"{where} has output_tokens {length!r}: give 1 or more, or leave it out")
    return Sample(prompt=prompt, output_tokens=length)


def _of_conversation(where: str, turns: list[Any]) -> Sample | None:
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise UsageError(f"{where} has a turn without a value: give {_FORMS}")
    at = next((n for n, turn in enumerate(turns) if turn.get("from") in _HUMANS and turn["value"]), None)
    if at is None:
        return None
    answer = turns[at + 1]["value"] if at + 1 < len(turns) else ""
    return Sample(prompt=turns[at]["value"], answer=answer or None)
