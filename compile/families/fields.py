"""Reads single fields of a config.json and collects faults; knows no family."""

from collections.abc import Mapping
from typing import Any


def read_count(data: Mapping[str, Any], key: str, faults: list[str]) -> int:
    """A positive int; otherwise adds a fault and returns 1, so that later checks can continue."""
    value = data.get(key)
    if type(value) is int and value > 0:
        return value
    faults.append(f"{key} is missing" if value is None else f"{key} is {value!r}, not a positive integer")
    return 1


def read_epsilon(data: Mapping[str, Any], faults: list[str]) -> float:
    value: Any = data.get("rms_norm_eps")
    if type(value) in (int, float) and 0 < value < 1:
        return float(value)
    faults.append(f"rms_norm_eps is {value!r}, not a number between 0 and 1")
    return 1.0
