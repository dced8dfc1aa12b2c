"""Messages to token ids, through the model's chat template; what the template refuses is a wrong request."""

from collections.abc import Mapping, Sequence
from typing import Any

from megrez.runtime.errors import MegrezError
from megrez.runtime.serving.http.errors import ApiError, as_api_error
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.llm import LLM


def encode_messages(
    llm: LLM, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
) -> list[int]:
    """Raises ApiError for messages that the template refuses or fails on."""
    if llm.template is None:
        raise ApiError("the model has no chat template: ask /v1/completions", param="messages")
    try:
        text = llm.template.render(messages, add_generation_prompt=add_generation_prompt)
        return llm.text.encode(text, add_bos=False)
    except MegrezError as error:
        # The template is valid: the server has compiled it. What fails here fails on these messages.
        raise ApiError(str(error), param="messages", code=as_api_error(error).code) from error


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """`messages`, with content as text; raises ApiError for content of other kinds."""
    if not fields.data.get("messages"):
        raise ApiError("messages is missing: give at least one, with a role and content", param="messages")
    return [{**one.data, **read_content(one)} for one in fields.objects("messages")]


def read_content(fields: Fields, name: str = "content") -> dict[str, str]:
    """The field `name` as text, its parts joined by line ends; empty where it is absent."""
    content = fields.data.get(name)
    if content is None:
        return {}
    if isinstance(content, str):
        return {name: content}
    parts = fields.objects(name)
    for part in parts:
        if part.data.get("type") != "text":
            raise part.fault("type", '"text", the only kind of content that is supported')
        if part.text("text") is None:
            raise part.fault("text", "a string")
    return {name: "\n".join(part.data["text"] for part in parts)}
