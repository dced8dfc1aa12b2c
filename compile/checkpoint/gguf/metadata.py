"""Checks the types of a .gguf file's metadata before they are used; knows no tensor."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from megrez.compile.checkpoint.faults import raise_faults

TOKENIZER = "tokenizer.ggml."


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: Any) -> bool:
    return type(value) in (bool, int)


def _list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


# key: (the required type, for messages; whether a value has it)
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "general.architecture": ("a string", _is_text),
    "split.count": ("a whole number", _is_id),
    "tokenizer.chat_template": ("a string", _is_text),
    f"{TOKENIZER}model": ("a string", _is_text),
    f"{TOKENIZER}pre": ("a string", _is_text),
    f"{TOKENIZER}tokens": ("a list of strings", _list_of(_is_text)),
    f"{TOKENIZER}merges": ("a list of strings", _list_of(_is_text)),
    f"{TOKENIZER}scores": ("a list of finite numbers", _list_of(_is_number)),
    f"{TOKENIZER}token_type": ("a list of whole numbers", _list_of(_is_id)),
    f"{TOKENIZER}add_bos_token": ("true or false", _is_flag),
    f"{TOKENIZER}add_space_prefix": ("true or false", _is_flag),
}


def check_metadata(metadata: Mapping[str, Any], *, source: str, remedy: str) -> None:
    """Raises CheckpointError that names every key whose value has another type, and lists of unequal length."""
    faults = []
    for key, value in metadata.items():
        expected, is_valid = _rule(key)
        if not is_valid(value):
            faults.append(f"{key} is {_shown(value)}, not {expected}")
    tokens = metadata.get(f"{TOKENIZER}tokens", [])
    for name in ("scores", "token_type"):
        found = metadata.get(TOKENIZER + name, tokens)
        if isinstance(tokens, list) and isinstance(found, list) and len(found) != len(tokens):
            faults.append(f"{TOKENIZER}{name} has {len(found)} entries for {len(tokens)} tokens")
    raise_faults(source, faults, remedy)


def _rule(key: str) -> tuple[str, Callable[[Any], bool]]:
    if key.startswith(TOKENIZER) and key.endswith("_token_id"):
        return "a token's id", _is_id
    if key.startswith("general.sampling.") and key != "general.sampling.sequence":
        return "a finite number", _is_number
    return KEYS.get(key, ("", lambda value: True))


def _shown(value: Any) -> str:
    return "a list with other values in it" if isinstance(value, list) else repr(value)[:40]
