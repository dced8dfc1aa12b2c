"""Reads the fields of a JSON body: checks types and ranges, treats `null` as absent, ignores unknown fields."""

import json
from collections.abc import Mapping
from typing import Any

from megrez.runtime.serving.http.errors import ApiError

# Deeper JSON is no request of ours.
DEPTH = 64


def read_body(raw: bytes) -> "Fields":
    """Raises ApiError for what is no JSON object."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ApiError("the body is not a JSON object: send one with the request's fields")
    if _depth(data) > DEPTH:
        raise ApiError(f"the body is nested more than {DEPTH} levels deep: send a flatter one")
    return Fields(data)


def _depth(data: Any) -> int:
    level, deep = [data], 0
    while level:
        deep += 1
        below: list[Any] = []
        for one in level:
            below += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = below
        if deep > DEPTH:
            break
    return deep


class Fields:
    """prefix: the path of the object in the body, for error messages."""

    def __init__(self, data: Mapping[str, Any], prefix: str = "") -> None:
        self.data = {name: value for name, value in data.items() if value is not None}
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def name(self, field: str) -> str:
        return f"{self._prefix}{field}"

    def fault(self, field: str, wanted: str) -> ApiError:
        found = json.dumps(self.data.get(field), ensure_ascii=False)
        shown = found if len(found) <= 80 else f"{found[:80]}…"
        return ApiError(f"{self.name(field)} must be {wanted}, found {shown}", param=self.name(field))

    def integer(self, field: str, low: int, high: int | None = None) -> int | None:
        value = self.data.get(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value < low or (high is not None and value > high):
            raise self.fault(
                field, f"an integer of {low} or more" if high is None else f"an integer of {low} to {high}"
            )
        return value

    def number(self, field: str, low: float, high: float) -> float | None:
        value = self.data.get(field)
        if value is None:
            return None
        if type(value) not in (int, float) or not low <= value <= high:  # NaN is in no range
            raise self.fault(field, f"a number of {low:g} to {high:g}")
        return float(value)

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.data.get(field, default)
        if not isinstance(value, bool):
            raise self.fault(field, "true or false")
        return value

    def text(self, field: str) -> str | None:
        value = self.data.get(field)
        if value is not None and not isinstance(value, str):
            raise self.fault(field, "a string")
        return value

    def texts(self, field: str, most: int) -> tuple[str, ...]:
        """One string or a list of them."""
        value = self.data.get(field, ())
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(one, str) and one for one in values):
            raise self.fault(field, "a string that is not empty, or a list of such strings")
        if len(values) > most:
            raise self.fault(field, f"at most {most} strings")
        return tuple(values)

    def ids(self, field: str) -> tuple[int, ...]:
        value = self.data.get(field, ())
        if not isinstance(value, list | tuple) or not all(type(one) is int for one in value):
            raise self.fault(field, "a list of token ids")
        return tuple(value)

    def fields(self, field: str) -> "Fields | None":
        """An object."""
        value = self.data.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fault(field, "an object")
        return Fields(value, f"{self.name(field)}.")

    def objects(self, field: str) -> "list[Fields]":
        """A list of objects."""
        value = self.data.get(field, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.fault(field, "a list of objects")
        return [Fields(one, f"{self.name(field)}[{at}].") for at, one in enumerate(value)]
