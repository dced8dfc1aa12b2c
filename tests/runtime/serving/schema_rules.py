"""JSON Schema by hand, for the keywords that these tests use: the reference that llguidance is held to."""

import math
import re
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": (int, float),
}


def is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, TYPES[name]) and (name != "integer" or value == int(value))


def equal(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def holds(value: Any, schema: Any, root: Any) -> bool:
    """Whether the schema accepts the value; AssertionError for a keyword that has no rule here."""
    if isinstance(schema, bool):
        return schema
    return all(RULES[key](value, wanted, schema, root) for key, wanted in schema.items())


def properties_hold(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, one in value.items():
        matching = [sub for pattern, sub in patterns.items() if re.search(pattern, key)]
        matching += [named[key]] if key in named else []
        if not all(holds(one, sub, root) for sub in matching or [schema.get("additionalProperties", True)]):
            return False
    return True


def items_hold(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, list):
        return True
    prefix = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return all(holds(one, prefix[at] if at < len(prefix) else rest, root) for at, one in enumerate(value))


def find(root: Any, pointer: str) -> Any:
    for part in pointer.removeprefix("#").strip("/").split("/"):
        root = root[part] if part else root
    return root


def is_number(value: Any) -> bool:
    return is_type(value, "number")


def is_multiple(value: Any, of: Any) -> bool:
    return math.isclose(value / of, round(value / of), abs_tol=1e-9)


FORMATS = {"date": r"\d{4}-\d\d-\d\d", "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"}
RULES: dict[str, Any] = {
    "type": lambda v, w, s, r: any(is_type(v, one) for one in ([w] if isinstance(w, str) else w)),
    "enum": lambda v, w, s, r: any(equal(v, one) for one in w),
    "const": lambda v, w, s, r: equal(v, w),
    "anyOf": lambda v, w, s, r: any(holds(v, one, r) for one in w),
    "oneOf": lambda v, w, s, r: sum(holds(v, one, r) for one in w) == 1,
    "allOf": lambda v, w, s, r: all(holds(v, one, r) for one in w),
    "$ref": lambda v, w, s, r: holds(v, find(r, w), r),
    "$defs": lambda v, w, s, r: True,
    "title": lambda v, w, s, r: True,
    "properties": lambda v, w, s, r: properties_hold(v, s, r),
    "patternProperties": lambda v, w, s, r: properties_hold(v, s, r),
    "additionalProperties": lambda v, w, s, r: properties_hold(v, s, r),
    "required": lambda v, w, s, r: not isinstance(v, dict) or all(one in v for one in w),
    "minProperties": lambda v, w, s, r: not isinstance(v, dict) or len(v) >= w,
    "maxProperties": lambda v, w, s, r: not isinstance(v, dict) or len(v) <= w,
    "items": lambda v, w, s, r: items_hold(v, s, r),
    "prefixItems": lambda v, w, s, r: items_hold(v, s, r),
    "minItems": lambda v, w, s, r: not isinstance(v, list) or len(v) >= w,
    "maxItems": lambda v, w, s, r: not isinstance(v, list) or len(v) <= w,
    "minLength": lambda v, w, s, r: not isinstance(v, str) or len(v) >= w,
    "maxLength": lambda v, w, s, r: not isinstance(v, str) or len(v) <= w,
    "pattern": lambda v, w, s, r: not isinstance(v, str) or re.search(w, v) is not None,
    "format": lambda v, w, s, r: not isinstance(v, str) or re.fullmatch(FORMATS[w], v) is not None,
    "minimum": lambda v, w, s, r: not is_number(v) or v >= w,
    "maximum": lambda v, w, s, r: not is_number(v) or v <= w,
    "exclusiveMinimum": lambda v, w, s, r: not is_number(v) or v > w,
    "exclusiveMaximum": lambda v, w, s, r: not is_number(v) or v < w,
    "multipleOf": lambda v, w, s, r: not is_number(v) or is_multiple(v, w),
}
