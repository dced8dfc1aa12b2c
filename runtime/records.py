"""Parses JSON into frozen dataclasses, strictly: a missing, unknown or mistyped field is a fault.

A field with a default may be missing.
"""

import dataclasses
import types
import typing
from typing import Any


def parse(kind: Any, data: Any, faults: list[str]) -> Any:
    """Parsed JSON `data` as the dataclass `kind`; None after faults, each added under its dotted name.

    Fields may be dataclasses, str, int, float, bool, T | None, tuple[T, ...] and dict[str, T].
    """
    return _parse(kind, data, "", faults)


def _parse(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Read `value` as the type `kind`; what does not fit is added to `faults` under its dotted name."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_record(kind, value, where, faults)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _parse(args[0], value, where, faults)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(args[0], item, f"{where}[{i}]", faults) for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _parse(args[1], item, f"{where}.{key}", faults) for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        faults.append(f"{where or 'the file'} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
    return value


def _parse_record(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        faults.append(f"{where or 'the file'} is {type(value).__name__}, not an object")
        return None
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    before = len(faults)
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    faults += [f"{prefix}{name} is missing" for name in hints if name not in value and name not in optional]
    faults += [f"{prefix}{name} is not a known field" for name in value if name not in hints]
    known = {name: _parse(hints[name], value[name], prefix + name, faults) for name in hints if name in value}
    return kind(**known) if len(faults) == before else None
