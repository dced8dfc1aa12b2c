"""Reads a JSON object from a checkpoint's folder, with one-line errors."""

import json
from pathlib import Path
from typing import Any

from megrez.runtime.errors import CheckpointError

DEEPEST = 100  # far below Python's recursion limit, wherever the values are processed later


def read_object(path: Path) -> dict[str, Any]:
    """The object in `path`; raises CheckpointError where it cannot be read or is not an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read from {path.parent}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON ({error}): download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} holds a {type(data).__name__}, not an object: download it again")
    if _is_deep(data):
        raise CheckpointError(f"{path.name} is nested more than {DEEPEST} deep: download it again")
    return data


def read_object_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _is_deep(data: dict[str, Any]) -> bool:
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return bool(level)
