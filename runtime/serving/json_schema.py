"""Refuses JSON schemas with keywords that guided output cannot enforce; compiles nothing.

Unknown keywords are refused too, which JSON Schema would ignore: they must not look as if they were enforced.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urldefrag, urljoin

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Schema
from megrez.runtime.serving.json_formats import spell_out_format

# Keywords that llguidance 1.9 enforces, or refuses itself where it cannot enforce their value.
_HONOURED = """
    $ref type enum const anyOf oneOf allOf items prefixItems additionalItems minItems maxItems properties required
    additionalProperties patternProperties minProperties maxProperties minLength maxLength pattern format minimum
    maximum exclusiveMinimum exclusiveMaximum multipleOf
"""
# Keywords that constrain no value. OpenAPI's discriminator only names the branch of a union to try first.
_ANNOTATIONS = """
    $schema $id $anchor $comment $defs definitions title description default example examples deprecated readOnly
    writeOnly discriminator
"""
KNOWN = frozenset((_HONOURED + _ANNOTATIONS).split())
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def read_schema(given: Schema | str) -> dict[str, Any]:
    """A copy of the schema as an object; UsageError names a keyword that cannot be enforced, with its JSON pointer."""
    try:
        schema = json.loads(given if isinstance(given, str) else json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON, or too deep ({error}): give an object") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UsageError(f"the JSON schema is {json.dumps(schema)[:40]}: give an object")
    found = list(subschemas(schema))
    documents = {"", *(base for _, base, _ in found)}
    for place, base, node in found:
        _check(place, node)
        _check_reference(place, base, node, documents)
    for _, _, node in found:
        spell_out_format(node)
    return schema


def subschemas(schema: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The schema and all its subschemas, each with its JSON pointer and its base URI."""
    todo = [("#", "", schema)]
    while todo:
        place, base, node = todo.pop()
        if not isinstance(node, dict):
            continue
        if isinstance(node.get("$id"), str):
            base = _document(base, node["$id"])
        yield place, base, node
        for key, value in node.items():
            if key in _SINGLE and isinstance(value, Mapping):
                todo.append((f"{place}/{key}", base, value))
            elif (key in _LISTS or key == "items") and isinstance(value, list):
                todo += ((f"{place}/{key}/{at}", base, one) for at, one in enumerate(value))
            elif key in _MAPS and isinstance(value, Mapping):
                todo += ((f"{place}/{key}/{name}", base, one) for name, one in value.items())


def _check(place: str, node: Mapping[str, Any]) -> None:
    unknown = [key for key in node if key not in KNOWN]
    # A vendor's annotations begin with x-; x-guidance would loosen llguidance itself.
    unknown = [key for key in unknown if not key.startswith("x-") or key == "x-guidance"]
    if unknown:
        raise UsageError(
            f"the JSON schema uses {json.dumps(unknown[0])} at {place}, which cannot be enforced: leave it out"
        )
    for key in ("enum", "anyOf", "oneOf"):
        if node.get(key) == []:
            raise UsageError(f'the JSON schema has an empty "{key}" at {place}, which no value satisfies: fill it')
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(node.get(key), bool):
            raise UsageError(f"the JSON schema has {key} as a boolean at {place}, as in draft 4: give it as a number")


def _check_reference(place: str, base: str, node: Mapping[str, Any], documents: Collection[str]) -> None:
    """Refuse a reference out of the schema: nothing is fetched. documents: the base URIs within the schema."""
    reference = node.get("$ref")
    if isinstance(reference, str) and _document(base, reference) not in documents:
        raise UsageError(
            f'the JSON schema uses "$ref" at {place} to another document, {json.dumps(reference[:80])}: '
            'put the definition into "$defs"'
        )


def _document(base: str, reference: str) -> str:
    """The absolute URI that the reference is to, without its fragment."""
    try:
        return urldefrag(urljoin(base, reference)).url
    except ValueError as error:
        raise UsageError(f"the JSON schema refers to {reference[:80]!r}, which is no URI: {error}") from error
