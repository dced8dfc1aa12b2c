"""Converts Anthropic's conversations and tools to OpenAI's format, and answers to Anthropic's content blocks."""

import json
from collections.abc import Iterable
from typing import Any

from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.prompts import read_content, read_text
from megrez.runtime.serving.http.tool_calls import FunctionCall, blocks, new_id
from megrez.runtime.serving.http.tool_choice import ToolChoice
from megrez.runtime.serving.tools.parser import Delta

# A call's input has to be an object: the key for arguments that are none, such as those of a call that was cut.
INVALID = "INVALID_JSON"


def read_conversation(fields: Fields) -> list[dict[str, Any]]:
    """`system` and `messages`; raises ApiError for blocks that are not supported."""
    if not fields.data.get("messages"):
        raise ApiError("messages is missing: give at least one, with a role and content", param="messages")
    system = read_content(fields, "system").get("system")
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in fields.objects("messages"):
        found += _read_message(message)
    return found


def read_tool_choice(fields: Fields) -> ToolChoice:
    tools = tuple(_tool(one) for one in fields.objects("tools"))
    choice = fields.fields("tool_choice") or Fields({"type": "auto"})
    kind = choice.data.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise choice.fault("type", '"auto", "any", "tool" or "none"')
    function = choice.text("name") if kind == "tool" else None
    if kind == "tool" and not function:
        raise choice.fault("name", "the name of a tool")
    parallel = not choice.flag("disable_parallel_tool_use")
    shown = () if kind == "none" else tools
    return ToolChoice(tools=shown, required=kind == "any", function=function, parallel=parallel)


def content_of(deltas: Iterable[Delta]) -> list[dict[str, Any]]:
    """The content blocks of a complete answer, at least one."""
    found: list[dict[str, Any]] = []
    for one in blocks(deltas):
        if isinstance(one, FunctionCall):
            found.append({**tool_use_block(one.name), "input": _input(one.arguments)})
        else:
            found.append({"type": "text", "text": one})
    return found or [{"type": "text", "text": ""}]


def tool_use_block(name: str) -> dict[str, Any]:
    """A call without its input."""
    return {"type": "tool_use", "id": new_id("toolu"), "name": name, "input": {}}


def _input(arguments: str) -> dict[str, Any]:
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {INVALID: arguments}


def _read_message(message: Fields) -> list[dict[str, Any]]:
    """One message, or several: each tool result becomes a message."""
    role = message.data.get("role")
    if not isinstance(message.data.get("content"), list):
        return [{"role": role, **read_content(message)}]
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []

    def end_text() -> None:
        if texts:
            found.append({"role": role, "content": "\n".join(texts)})
            texts.clear()

    for block in message.objects("content"):
        kind = block.data.get("type")
        if kind == "tool_use" and role == "assistant":
            calls.append(_call(block))
        elif kind == "tool_result" and role == "user":
            end_text()
            result = read_content(block).get("content", "")
            found.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": result})
        else:
            texts.append(read_text(block))
    if calls:
        return [{"role": role, "content": "\n".join(texts), "tool_calls": calls}]
    end_text()
    return found or [{"role": role, "content": ""}]


def _call(block: Fields) -> dict[str, Any]:
    name, given = block.text("name"), block.fields("input")
    if not name:
        raise block.fault("name", "the name of a tool")
    arguments = json.dumps(dict(given.data) if given else {}, ensure_ascii=False)
    return {"id": block.text("id"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(tool: Fields) -> dict[str, Any]:
    if tool.data.get("type", "custom") != "custom":
        raise tool.fault("type", '"custom", the only kind of tool that is supported')
    if not tool.text("name"):
        raise tool.fault("name", "a string that is not empty")
    schema = tool.fields("input_schema")
    if schema is None:
        raise tool.fault("input_schema", "a JSON schema, as an object")
    function = {"name": tool.text("name"), "description": tool.text("description")}
    given = {key: value for key, value in function.items() if value is not None}
    return {
        "type": "function",
        "function": {**given, "parameters": tool.data["input_schema"], "strict": tool.flag("strict")},
    }
