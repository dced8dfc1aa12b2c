"""Conversations with functions as prompts, also for templates that know none; knows no sequences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megrez.runtime.chat import ChatTemplate, Message
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.tools.formats import ToolFormat, knows_tools

Tool = Mapping[str, Any]
# From the model card of Megrez-3B-Instruct.
INTRODUCTION = "You have access to the following functions. Use them if required -"


def render_with_tools(
    template: ChatTemplate,
    tool_format: ToolFormat | None,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt for OpenAI's `messages` and `tools`, which may hold calls and results of earlier turns.

    A template that does not know tools gets them in the system prompt, Megrez's way. Raises UsageError where the
    model has no format for calls, and as ChatTemplate.render.
    """
    generation = add_generation_prompt
    if not tools and not any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
        return template.render(messages, add_generation_prompt=generation)
    if tool_format is None:
        raise UsageError("the model's chat template has no known form for function calls: ask without tools")
    functions = [function_of(tool) for tool in tools]
    if knows_tools(template):
        shown = [_without_strict(tool) for tool in tools] or None
        read = [_arguments_as_objects(message) for message in messages]
        return template.render(read, tools=shown, add_generation_prompt=generation)
    plain = [_as_text(message, tool_format) for message in messages]
    if functions:
        plain = _introduced(plain, functions, tool_format)
    return template.render(plain, add_generation_prompt=generation)


def function_of(tool: Tool) -> Mapping[str, Any]:
    """The function of a tool in OpenAI's format; UsageError for any other tool."""
    is_function = isinstance(tool, Mapping) and tool.get("type", "function") == "function"
    function = tool.get("function") if is_function else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UsageError(
            'a tool is not a function with a name: give {"type": "function", "function": {"name": …, "parameters": …}}'
        )
    return function


def _without_strict(tool: Tool) -> dict[str, Any]:
    """The tool without `strict`, which is for the server and not for the model."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}


def _introduced(
    messages: list[dict[str, Any]], functions: Sequence[Mapping[str, Any]], tool_format: ToolFormat
) -> list[dict[str, Any]]:
    listed = [{key: one[key] for key in ("name", "description", "parameters") if key in one} for one in functions]
    text = f"{INTRODUCTION}\n{json.dumps(listed, indent=4, ensure_ascii=False)}"
    if tool_format.explained:
        call = f'{{"name": "NAME", "{tool_format.arguments_key}": {{"PARAMETER": "VALUE"}}}}'
        text += f"\n\nTo call a function, answer with:\n{_marked(call, tool_format)}"
    if messages and messages[0].get("role") == "system":
        first, *rest = messages
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def _as_text(message: Message, tool_format: ToolFormat) -> dict[str, Any]:
    """A message as role and text alone: calls in the format's notation, results from Megrez's role `observation`.

    Templates that support no functions may reject that role: with the generic format, results come from the user.
    """
    content = _text_of(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = _called(call)
        body = {"name": function["name"], tool_format.arguments_key: function["arguments"]}
        content += _marked(json.dumps(body, ensure_ascii=False), tool_format)
    role = message.get("role")
    if role != "tool":
        return {"role": role, "content": content}
    if tool_format.explained:
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    return {"role": "observation", "content": content}


def _marked(call: str, tool_format: ToolFormat) -> str:
    return f"{tool_format.begin}{tool_format.padding}{call}{tool_format.padding}{tool_format.end}"


def _arguments_as_objects(message: Message) -> Message:
    """Templates write arguments as JSON themselves, and would quote a string once more."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{**call, "function": _called(call)} for call in calls]}


def _called(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError('a tool call has no function with a name: give {"function": {"name": …, "arguments": …}}')
    arguments = function.get("arguments") or "{}"
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = arguments  # an answer that was cut: the model sees what it wrote
    return {**function, "arguments": read}


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content or ""
