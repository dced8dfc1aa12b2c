"""`tool_choice` and strict functions as a Guided; compiles nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided, Schema, Segment, Structural
from megrez.runtime.serving.tools.formats import ToolFormat
from megrez.runtime.serving.tools.prompt import Tool, function_of


def guided_by_tools(
    tool_format: ToolFormat,
    tools: Sequence[Tool],
    choice: Literal["auto", "required"] | str = "auto",
    *,
    function: str | None = None,
    parallel: bool = True,
    answer: Schema | None = None,
) -> Guided | None:
    """The constraint that enforces `tool_choice`; None where none is needed.

    choice: "none", "auto" or "required". function: the one that has to be called, once, whatever `choice` is.
    parallel: whether several calls are allowed. answer: for "auto", the schema of an answer without calls.
    With "auto", the schemas of functions with "strict": true are enforced, and the others' arguments are JSON objects.
    Raises UsageError for a function that is not among `tools`, and for `answer` with a bare format.
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
    if not functions or (choice == "none" and not must):
        return None
    answer = None if must else answer
    if answer is not None and tool_format.bare:
        # llguidance reads the longest lexeme: an object that begins as a call does could be nothing else.
        raise UsageError(
            f"the {tool_format.name} format cannot tell calls from an answer that is JSON: "
            "ask without tools, or set tool_choice to required"
        )
    if not (must or answer is not None or any(one.get("strict") for one in functions)) and parallel:
        return None
    segments = tuple(_segment(tool_format, one, strict=must or bool(one.get("strict"))) for one in functions)
    return Guided(
        structural=Structural(
            segments=segments,
            separator=tool_format.separator,
            free_text=not must,
            trigger="" if tool_format.bare else tool_format.begin,
            repeat=parallel and function is None,
            answer=answer,
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
