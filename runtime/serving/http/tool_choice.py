"""Reads OpenAI's tools, tool_choice and parallel_tool_calls, and turns them into a constraint of the answer."""

from dataclasses import dataclass
from typing import Any

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Schema
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import Constraint
from megrez.runtime.serving.tools.choice import guided_by_tools
from megrez.runtime.serving.tools.formats import ToolFormat

_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """tools: in OpenAI's format, without null fields; empty for tool_choice none, so that the prompt has none.

    required: whether the answer has to call a function. function: the one it has to call. parallel: whether several
    calls are allowed.
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


def tool_constraint(
    choice: ToolChoice, tool_format: ToolFormat | None, constraint: Constraint | None
) -> Constraint | None:
    """One constraint for both; `constraint` applies to answers without calls.

    Raises ApiError where the two cannot be combined, and for a required function that is not among the tools.
    """
    if not choice.tools:
        if choice.required or choice.function:
            raise ApiError("tool_choice asks for a call and there are no tools: give some", param="tool_choice")
        return constraint
    if tool_format is None:
        raise no_format()
    try:
        guided = guided_by_tools(
            tool_format,
            choice.tools,
            "required" if choice.required else "auto",
            function=choice.function,
            parallel=choice.parallel,
            answer=_schema(constraint),
        )
    except UsageError as error:
        raise ApiError(str(error), param="tool_choice") from error
    return None if guided is None else Constraint(guided=guided, field="tools")


def no_format() -> ApiError:
    return ApiError("tools are not supported: the chat template's format of function calls is not known", param="tools")


def _schema(constraint: Constraint | None) -> Schema | None:
    if constraint is None:
        return None
    if constraint.guided.json_object:
        return {"type": "object"}
    if isinstance(constraint.guided.json_schema, dict):
        return constraint.guided.json_schema
    field = constraint.field
    raise ApiError(f"{field} cannot be combined with tools: give response_format, or no tools", param=field)


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
