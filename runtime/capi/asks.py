"""Requests of the C API, as JSON, to token ids and sampling parameters: the server's readers, without HTTP."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.prompts import read_messages
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.tools.choice import guided_by_tools
from megrez.runtime.serving.tools.formats import ToolFormat
from megrez.runtime.serving.tools.prompt import Tool, function_of, render_with_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """prompt: token ids. functions: names of those that answers may call."""

    prompt: list[int]
    params: SamplingParams
    functions: tuple[str, ...] = ()


def decode(text: bytes, name: str) -> str:
    """UTF-8; UsageError otherwise."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 (byte {error.start}): convert it first") from error


def read_request(raw: bytes | None) -> dict[str, Any]:
    """The options of a request; none for NULL and for empty text."""
    found = _read_json(raw, "request") if raw and raw.strip() else {}
    if not isinstance(found, dict):
        raise UsageError(f"request is {_shown(found)}: give a JSON object")
    return found


def read_completion(llm: LLM, request: bytes | None, prompt: bytes | None) -> Ask:
    """prompt: text to continue; None takes the request's, text or token ids. Raises UsageError or ApiError."""
    fields = Fields(read_request(request))
    if any(name in fields for name in ("tools", "messages")):
        raise UsageError("the request has tools or messages, which only chats have: use megrez_submit_chat")
    given: object = fields.data.get("prompt") if prompt is None else decode(prompt, "prompt")
    if given is None:
        raise UsageError("the prompt is NULL and the request has none: give one of the two")
    if not isinstance(given, str) and not (isinstance(given, list) and all(type(one) is int for one in given)):
        raise UsageError(f"prompt is {_shown(given)}: give text, or a list of token ids")
    ids = llm.text.encode(given) if isinstance(given, str) else given
    return Ask(prompt=ids, params=_params(llm, fields, _guided(fields)))


def read_chat(llm: LLM, tool_format: ToolFormat | None, request: bytes | None, messages: bytes | None) -> Ask:
    """messages: a JSON list; None takes the request's. Raises UsageError, BundleError or ApiError."""
    fields = _chat_fields(request, messages)
    tools = _tools(fields)
    guided = _tool_guided(fields, tools, tool_format) or _guided(fields)
    prompt = llm.text.encode(_render(llm, tool_format, fields, tools), add_bos=False)
    names = tuple(function_of(tool)["name"] for tool in tools)
    return Ask(prompt=prompt, params=_params(llm, fields, guided), functions=names)


def render_chat(llm: LLM, tool_format: ToolFormat | None, request: bytes | None, messages: bytes | None) -> str:
    """The prompt's text."""
    fields = _chat_fields(request, messages)
    return _render(llm, tool_format, fields, _tools(fields))


def _chat_fields(request: bytes | None, messages: bytes | None) -> Fields:
    given = read_request(request)
    return Fields(given if messages is None else {**given, "messages": _read_json(messages, "messages")})


def _render(llm: LLM, tool_format: ToolFormat | None, fields: Fields, tools: Sequence[Tool]) -> str:
    if llm.template is None:
        raise UsageError(f"the bundle {llm.bundle.path} has no chat template: give it plain text")
    return render_with_tools(llm.template, tool_format, read_messages(fields), tools)


def _params(llm: LLM, fields: Fields, guided: Guided | None) -> SamplingParams:
    newer = fields.integer("max_completion_tokens", 1)
    params = read_sampling(
        fields,
        llm.default_params,
        max_tokens=fields.integer("max_tokens", 1) if newer is None else newer,
        vocab_size=llm.session.vocab_size,
    )
    return dataclasses.replace(params, logprobs=_logprobs(fields), guided=guided)


def _logprobs(fields: Fields) -> int | None:
    """Chats have a flag and top_logprobs, completions a number."""
    given = fields.data.get("logprobs", False)
    if not isinstance(given, bool):
        return read_top_logprobs(fields, "logprobs")
    return (read_top_logprobs(fields, "top_logprobs") or 0) if given else None


def _tools(fields: Fields) -> list[Tool]:
    """None where the model is not to call any."""
    tools: list[Tool] = [one.data for one in fields.objects("tools")]
    for tool in tools:
        function_of(tool)
    return [] if fields.data.get("tool_choice") == "none" else tools


def _tool_guided(fields: Fields, tools: Sequence[Tool], tool_format: ToolFormat | None) -> Guided | None:
    choice, function = fields.data.get("tool_choice", "auto"), None
    if isinstance(choice, dict):
        function = function_of(choice)["name"]
    elif choice not in ("none", "auto", "required"):
        raise fields.fault("tool_choice", "none, auto, required, or a function")
    if not tools and (function or choice == "required"):
        raise UsageError("tool_choice asks for a call and there are no tools: give some")
    if not tools:
        return None
    if tool_format is None:
        raise UsageError("the model's chat template has no known form for function calls: ask without tools")
    if _guided(fields) is not None:
        raise UsageError("tools and guided output cannot be combined: give one of them")
    named: Literal["auto", "required"] = "required" if choice == "required" else "auto"
    return guided_by_tools(
        tool_format, tools, named, function=function, parallel=fields.flag("parallel_tool_calls", True)
    )


def _guided(fields: Fields) -> Guided | None:
    """By OpenAI's and vLLM's names."""
    found = {name: value for name, value in _guided_fields(fields).items() if value is not None}
    return Guided(**found) if found else None


def _guided_fields(fields: Fields) -> dict[str, Any]:
    form = fields.fields("response_format")
    kind = None if form is None else form.text("type")
    if form is not None and kind not in ("text", "json_object", "json_schema"):
        raise form.fault("type", '"text", "json_object" or "json_schema"')
    inner = form.fields("json_schema") if form is not None and kind == "json_schema" else None
    if kind == "json_schema" and (inner is None or "schema" not in inner):
        raise fields.fault("response_format", "an object with json_schema.schema")
    schema = fields.data.get("guided_json")
    return {
        "json_schema": schema if inner is None else inner.data["schema"],
        "json_object": True if kind == "json_object" else None,
        "regex": fields.text("guided_regex"),
        "choice": fields.texts("guided_choice", 1024) if "guided_choice" in fields else None,
        "grammar": fields.text("guided_grammar"),
    }


def _read_json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(decode(raw, name))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
