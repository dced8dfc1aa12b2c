"""Reads the fields of guided output, under OpenAI's, vLLM's and Anthropic's names, and compiles grammars.

Independent of tools and prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.llm import LLM

# Of structured_outputs; there is no fallback that disable_fallback could disable.
_STRUCTURED = ("json", "regex", "choice", "grammar", "json_object", "disable_fallback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """field: the name of the body's field that asks for `guided`, for error messages."""

    guided: Guided
    field: str


def read_constraint(fields: Fields) -> Constraint | None:
    """None without any of the fields; ApiError for more than one, or for a malformed one."""
    found = []
    for name, read in _READERS.items():
        try:
            guided = read(fields) if name in fields else None
        except UsageError as error:
            raise ApiError(f"{name}: {error}", param=name) from error
        if guided is not None:
            found.append(Constraint(guided=guided, field=name))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise ApiError(f"{first} and {second} both constrain the answer: give one of them", param=second)
    return found[0] if found else None


def compile_constraint(llm: LLM, constraint: Constraint | None) -> Grammar | None:
    """Call it outside the event loop: a huge schema takes seconds. Raises ApiError for what cannot be enforced."""
    if constraint is None:
        return None
    try:
        return llm.compile_guided(constraint.guided)
    except UsageError as error:
        raise ApiError(f"{constraint.field}: {error}", param=constraint.field) from error


def _schema(fields: Fields, field: str) -> Guided:
    """A field that has to be a JSON schema as an object."""
    schema = fields.data.get(field)
    if not isinstance(schema, dict):
        raise fields.fault(field, "a JSON schema, as an object")
    return Guided(json_schema=schema)


def _response_format(fields: Fields) -> Guided | None:
    form = fields.fields("response_format")
    assert form is not None
    kind = form.text("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Guided(json_object=True)
    if kind != "json_schema":
        raise form.fault("type", '"text", "json_object" or "json_schema"')
    inner = form.fields("json_schema")
    if inner is None:
        raise form.fault("json_schema", "an object with a schema")
    return _schema(inner, "schema")


def _output_config(fields: Fields) -> Guided | None:
    config = fields.fields("output_config")
    form = None if config is None else config.fields("format")
    if form is None:
        return None
    if form.data.get("type") != "json_schema":
        raise form.fault("type", '"json_schema"')
    return _schema(form, "schema")


def _json(fields: Fields, field: str) -> Guided:
    schema = fields.data[field]
    if not isinstance(schema, dict | str):
        raise fields.fault(field, "a JSON schema, as an object or as text")
    return Guided(json_schema=schema)


def _choice(fields: Fields, field: str) -> Guided:
    choice = fields.data[field]
    if not isinstance(choice, list) or not choice or not all(isinstance(one, str) for one in choice):
        raise fields.fault(field, "a list of at least one string")
    return Guided(choice=tuple(choice))


def _structured_outputs(fields: Fields) -> Guided:
    options = fields.fields("structured_outputs")
    assert options is not None
    for name, value in options.data.items():
        if name not in _STRUCTURED and value:
            raise ApiError(f"{options.name(name)} is not supported: leave it out", param=options.name(name))
    given: dict[str, Callable[[], Guided]] = {
        "json": lambda: _json(options, "json"),
        "regex": lambda: Guided(regex=options.text("regex")),
        "choice": lambda: _choice(options, "choice"),
        "grammar": lambda: Guided(grammar=options.text("grammar")),
        "json_object": lambda: Guided(json_object=options.flag("json_object")),
    }
    asked = [name for name in given if name in options]
    if len(asked) != 1:
        raise fields.fault("structured_outputs", f"an object with exactly one of {', '.join(given)}")
    return given[asked[0]]()


_READERS: dict[str, Callable[[Fields], Guided | None]] = {
    "response_format": _response_format,
    "output_config": _output_config,
    "structured_outputs": _structured_outputs,
    "guided_json": lambda fields: _json(fields, "guided_json"),
    "guided_regex": lambda fields: Guided(regex=fields.text("guided_regex")),
    "guided_choice": lambda fields: _choice(fields, "guided_choice"),
    "guided_grammar": lambda fields: Guided(grammar=fields.text("guided_grammar")),
}
