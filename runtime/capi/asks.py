"""Requests of the C API, as JSON, to token ids and sampling parameters: the server's readers, without HTTP."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from megrez.runtime.errors import UsageError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import compile_constraint, read_constraint
from megrez.runtime.serving.http.prompts import Answering, encode_messages, read_messages, render_messages
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.http.tool_choice import read_tool_choice, tool_constraint
from megrez.runtime.serving.http.unsupported import refuse_unsupported
from megrez.runtime.serving.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """prompt: token ids. grammar: what answers are constrained to. functions: names of those that answers may call."""

    prompt: list[int]
    params: SamplingParams
    grammar: Grammar | None
    functions: tuple[str, ...] = ()


def decode(text: bytes, name: str) -> str:
    """UTF-8; UsageError otherwise."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 (byte {error.start}): convert it first") from error


def read_completion(llm: LLM, request: bytes | None, prompt: bytes | None) -> Ask:
    """prompt: text to continue; None takes the request's, text or token ids. Raises UsageError or ApiError."""
    fields = Fields(_read_request(request))
    refuse_unsupported(fields)
    if any(name in fields for name in ("tools", "messages")):
        raise UsageError("the request has tools or messages, which only chats have: use megrez_submit_chat")
    given: object = fields.data.get("prompt") if prompt is None else decode(prompt, "prompt")
    if given is None:
        raise UsageError("the prompt is NULL and the request has none: give one of the two")
    if not isinstance(given, str) and not (isinstance(given, list) and all(type(one) is int for one in given)):
        raise UsageError(f"prompt is {_shown(given)}: give text, or a list of token ids")
    return Ask(
        prompt=llm.text.encode(given) if isinstance(given, str) else given,
        params=_params(llm, fields),
        grammar=compile_constraint(llm, read_constraint(fields)),
    )


def read_chat(model: Answering, request: bytes | None, messages: bytes | None) -> Ask:
    """messages: a JSON list; None takes the request's. Raises UsageError or ApiError."""
    fields = _chat_fields(model, request, messages)
    tools = read_tool_choice(fields)
    constraint = tool_constraint(tools, model.tool_format, read_constraint(fields))
    generation = fields.flag("add_generation_prompt", True)
    return Ask(
        prompt=encode_messages(model, read_messages(fields), tools.tools, add_generation_prompt=generation),
        params=_params(model.llm, fields),
        grammar=compile_constraint(model.llm, constraint),
        functions=tools.names,
    )


def render_chat(model: Answering, request: bytes | None, messages: bytes | None) -> str:
    """The prompt's text."""
    fields = _chat_fields(model, request, messages)
    generation = fields.flag("add_generation_prompt", True)
    return render_messages(
        model, read_messages(fields), read_tool_choice(fields).tools, add_generation_prompt=generation
    )


def _chat_fields(model: Answering, request: bytes | None, messages: bytes | None) -> Fields:
    if model.llm.template is None:
        raise UsageError(f"the bundle {model.llm.bundle.path} has no chat template: give a prompt to megrez_submit")
    given = _read_request(request)
    fields = Fields(given if messages is None else {**given, "messages": _read_json(messages, "messages")})
    refuse_unsupported(fields)
    return fields


def _read_request(raw: bytes | None) -> dict[str, Any]:
    """The options of a request; none for NULL and for empty text."""
    found = _read_json(raw, "request") if raw and raw.strip() else {}
    if not isinstance(found, dict):
        raise UsageError(f"request is {_shown(found)}: give a JSON object")
    return found


def _params(llm: LLM, fields: Fields) -> SamplingParams:
    max_tokens, newer = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    params = read_sampling(
        fields,
        llm.default_params,
        max_tokens=max_tokens if newer is None else newer,
        vocab_size=llm.session.vocab_size,
    )
    return dataclasses.replace(params, logprobs=_logprobs(fields))


def _logprobs(fields: Fields) -> int | None:
    """Chats have a flag and top_logprobs, completions a number."""
    given = fields.data.get("logprobs", False)
    if not isinstance(given, bool):
        return read_top_logprobs(fields, "logprobs")
    return (read_top_logprobs(fields, "top_logprobs") or 0) if given else None


def _read_json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(decode(raw, name))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
