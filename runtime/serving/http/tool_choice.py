"""Which functions an answer may call, and whether it must: OpenAI's tools, tool_choice and parallel_tool_calls."""

from dataclasses import dataclass
from typing import Any

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Schema
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import Form
from megrez.runtime.serving.tools.choice import guided_by_tools
from megrez.runtime.serving.tools.formats import ToolFormat

_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """tools: in OpenAI's form, without null fields; none where none may be called, so that the model sees none.

    required: whether one must be called. function: the only one that may be, and must. parallel: whether several may.
    """

    tools: tuple[dict[str, Any], ...] = ()
    required: bool = False
    function: str | None = None
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool["function"]["name"] for tool in self.tools)


def read_tool_choice(fields: Fields) -> ToolChoice:
    """Raises ApiError that names the field at fault."""
    tools = tuple(_tool(one) for one in fields.objects("tools"))
    choice = fields.data.get("tool_choice", "auto")
    function = None
    if isinstance(choice, dict):
        function = _named(fields)
    elif choice not in _CHOICES:
        raise fields.fault("tool_choice", f"{', '.join(_CHOICES)}, or a function")
    parallel = fields.flag("parallel_tool_calls", True)
    if choice == "none":
        return ToolChoice(parallel=parallel)
    return ToolChoice(tools=tools, required=choice == "required", function=function, parallel=parallel)


def as_form(choice: ToolChoice, tool_format: ToolFormat | None, form: Form | None) -> Form | None:
    """What holds an answer to both; `form` is for answers that call nothing.

    Raises ApiError where they cannot be had together, and where a function is required that is not there.
    """
    if not choice.tools:
        if choice.required or choice.function:
            raise ApiError("tool_choice asks for a call and there are no tools: give some", param="tool_choice")
        return form
    if tool_format is None:
        raise no_format()
    try:
        guided = guided_by_tools(
            tool_format,
            choice.tools,
            "required" if choice.required else "auto",
            function=choice.function,
            parallel=choice.parallel,
            answer=_schema(form),
        )
    except UsageError as error:
        raise ApiError(str(error), param="tool_choice") from error
    return None if guided is None else Form(guided=guided, field="tools")


def no_format() -> ApiError:
    return ApiError("tools are not supported: the chat template has no form for them that is known here", param="tools")


def _schema(form: Form | None) -> Schema | None:
    if form is None:
        return None
    if form.guided.json_object:
        return {"type": "object"}
    if isinstance(form.guided.json_schema, dict):
        return form.guided.json_schema
    raise ApiError(f"{form.field} cannot be combined with tools: give response_format, or no tools", param=form.field)


def _tool(tool: Fields) -> dict[str, Any]:
    if tool.data.get("type", "function") != "function":
        raise tool.fault("type", '"function", the only kind of tool that is supported')
    function = tool.fields("function")
    if function is None or not function.text("name"):
        raise tool.fault("function", "an object with a name")
    if function.fields("parameters") is None and "parameters" in function:
        raise function.fault("parameters", "a JSON schema, as an object")
    function.text("description")
    function.flag("strict")
    return {"type": "function", "function": dict(function.data)}


def _named(fields: Fields) -> str:
    choice = fields.fields("tool_choice")
    assert choice is not None
    if choice.data.get("type", "function") != "function":
        raise choice.fault("type", '"function", the only one that is supported as an object')
    function = choice.fields("function")
    name = None if function is None else function.text("name")
    if not name:
        raise fields.fault("tool_choice", 'a function: {"type": "function", "function": {"name": …}}')
    return name
