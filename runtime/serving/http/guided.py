"""What form a body asks its answer to have, as a Guided: by OpenAI's, vLLM's and Anthropic's names.

Knows neither tools nor prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.llm import LLM

# Of structured_outputs; disable_fallback asks for what is so anyway.
_STRUCTURED = ("json", "regex", "choice", "grammar", "json_object", "disable_fallback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """guided: what the answer is held to. field: of the body, which says so, as errors name it."""

    guided: Guided
    field: str


def read_form(fields: Fields) -> Form | None:
    """None where the body asks for no form; ApiError where it asks for two, or for one that is malformed."""
    found = []
    for name, read in _READERS.items():
        try:
            guided = read(fields) if name in fields else None
        except UsageError as error:
            raise ApiError(f"{name}: {error}", param=name) from error
        if guided is not None:
            found.append(Form(guided=guided, field=name))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise ApiError(f"{first} and {second} both give the answer's form: give one of them", param=second)
    return found[0] if found else None


def compile_form(llm: LLM, form: Form | None) -> Grammar | None:
    """Up to seconds for a huge schema: not in the event loop. Raises ApiError for what cannot be honoured."""
    if form is None:
        return None
    try:
        return llm.compile_guided(form.guided)
    except UsageError as error:
        raise ApiError(f"{form.field}: {error}", param=form.field) from error


def _schema(fields: Fields, field: str) -> Guided:
    """The schema, an object, in the field."""
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
    form = fields.fields("structured_outputs")
    assert form is not None
    for name, value in form.data.items():
        if name not in _STRUCTURED and value:
            raise ApiError(f"{form.name(name)} is not supported: leave it out", param=form.name(name))
    given: dict[str, Callable[[], Guided]] = {
        "json": lambda: _json(form, "json"),
        "regex": lambda: Guided(regex=form.text("regex")),
        "choice": lambda: _choice(form, "choice"),
        "grammar": lambda: Guided(grammar=form.text("grammar")),
        "json_object": lambda: Guided(json_object=form.flag("json_object")),
    }
    asked = [name for name in given if name in form]
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
