"""`tool_choice` and strict functions as a Guided; compiles nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided, Segment, Structural
from megrez.runtime.serving.tools.formats import ToolFormat
from megrez.runtime.serving.tools.prompt import Tool, function_of


def guided_by_tools(
    tool_format: ToolFormat,
    tools: Sequence[Tool],
    choice: Literal["auto", "required"] | str = "auto",
    *,
    function: str | None = None,
    parallel: bool = True,
) -> Guided | None:
    """The constraint that enforces `tool_choice`; None where none is needed.

    choice: "none", "auto" or "required". function: the one that must be called, whatever `choice` says; once.
    parallel: whether several calls may come. Of "auto", functions with "strict": true are held to their schemas and
    the others to JSON objects. Raises UsageError for a function that is not among `tools`.
    """
    functions = [function_of(tool) for tool in tools]
    if function is not None:
        functions = [one for one in functions if one["name"] == function]
        if not functions:
            raise UsageError(f"tool_choice names the function {function!r}, which is not among the tools: add it")
    elif choice not in ("none", "auto", "required"):
        raise UsageError(f"tool_choice is {choice!r}: give none, auto, required or a function")
    elif choice == "required" and not functions:
        raise UsageError("tool_choice is required and there are no tools: give some")
    must = function is not None or choice == "required"
    if (choice == "none" and function is None) or not (must or any(one.get("strict") for one in functions)):
        return None
    segments = tuple(_segment(tool_format, one, strict=must or bool(one.get("strict"))) for one in functions)
    return Guided(
        structural=Structural(
            segments=segments,
            separator=tool_format.separator,
            free_text=not must,
            trigger="" if tool_format.bare else tool_format.begin,
            repeat=parallel and function is None,
        )
    )


def _segment(tool_format: ToolFormat, function: Mapping[str, Any], *, strict: bool) -> Segment:
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    parameters = function.get("parameters") or nothing
    name = json.dumps(function["name"], ensure_ascii=False)
    begin = "" if tool_format.bare else tool_format.begin + tool_format.padding
    return Segment(
        name=function["name"],
        begin=f'{begin}{{"name": {name}, "{tool_format.arguments_key}": ',
        schema=parameters if strict else {"type": "object"},
        end=f"}}{tool_format.padding}{tool_format.end}",
    )
