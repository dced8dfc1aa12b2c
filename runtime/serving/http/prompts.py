"""Messages to token ids, through the model's chat template; what the template refuses is a wrong request."""

from collections.abc import Mapping, Sequence
from typing import Any

from megrez.runtime.errors import MegrezError
from megrez.runtime.serving.http.errors import ApiError, as_api_error
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.tool_choice import no_format
from megrez.runtime.serving.tools.prompt import render_with_tools


def encode_messages(
    served: Served,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """messages, tools: in OpenAI's format. Raises ApiError for what the template refuses or fails on."""
    llm = served.llm
    if llm.template is None:
        raise ApiError("the model has no chat template: ask /v1/completions", param="messages")
    if tools and served.tool_format is None:
        raise no_format()
    try:
        text = render_with_tools(
            llm.template, served.tool_format, messages, tools, add_generation_prompt=add_generation_prompt
        )
        return llm.text.encode(text, add_bos=False)
    except MegrezError as error:
        # The template is valid: the server has compiled it. What fails here fails on these messages.
        raise ApiError(str(error), param="messages", code=as_api_error(error).code) from error


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """`messages`, with content as text and calls checked; raises ApiError for content of other kinds."""
    if not fields.data.get("messages"):
        raise ApiError("messages is missing: give at least one, with a role and content", param="messages")
    return [_read_message(one) for one in fields.objects("messages")]


def read_content(fields: Fields, name: str = "content") -> dict[str, str]:
    """The field `name` as text, its parts joined by line ends; empty where it is absent."""
    content = fields.data.get(name)
    if content is None:
        return {}
    if isinstance(content, str):
        return {name: content}
    return {name: "\n".join(read_text(part) for part in fields.objects(name))}


def read_text(part: Fields) -> str:
    """Of one part of a content."""
    if part.data.get("type") != "text":
        raise part.fault("type", '"text", the only kind of content that is supported')
    text = part.text("text")
    if text is None:
        raise part.fault("text", "a string")
    return text


def _read_message(message: Fields) -> dict[str, Any]:
    if message.data.get("function_call"):
        raise message.fault("function_call", "absent: give tool_calls")
    calls = [_read_call(one) for one in message.objects("tool_calls")]
    read = {**message.data, **read_content(message)}
    read.pop("tool_calls", None)
    if calls:
        return {"content": "", **read, "tool_calls": calls}
    return read


def _read_call(call: Fields) -> dict[str, Any]:
    if call.data.get("type", "function") != "function":
        raise call.fault("type", '"function"')
    function = call.fields("function")
    if function is None or not function.text("name"):
        raise call.fault("function", "an object with a name")
    function.text("arguments")
    return {"type": "function", **call.data, "function": dict(function.data)}
