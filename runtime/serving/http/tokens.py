"""Endpoints without generation: models, health, metrics, and the tokenizer's."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from megrez.runtime.errors import MegrezError
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.errors import ApiError, JsonResponse, as_api_error
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.metrics import CONTENT_TYPE
from megrez.runtime.serving.http.prompts import encode_messages, read_messages
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.tool_choice import read_tool_choice

Get = Callable[[HttpRequest], Awaitable[Response]]


async def tokenize(call: Call) -> dict[str, Any]:
    """vLLM's /tokenize: of a prompt, or of messages."""
    ids = await asyncio.to_thread(_encode, call.fields, call.served)
    return {"tokens": ids, "count": len(ids), "max_model_len": call.served.llm.session.capacity}


async def detokenize(call: Call) -> dict[str, Any]:
    call.served.check_model(call.fields)
    llm, ids = call.served.llm, call.fields.ids("tokens")
    if outside := [one for one in ids if not 0 <= one < llm.session.vocab_size]:
        raise ApiError(f"token id {outside[0]} is outside the model's vocabulary", param="tokens")
    return {"prompt": await asyncio.to_thread(llm.text.decode, ids)}


def _encode(fields: Fields, served: Served) -> list[int]:
    served.check_model(fields)
    if "messages" in fields:
        generation = fields.flag("add_generation_prompt", True)
        tools = read_tool_choice(fields).tools
        return encode_messages(served, read_messages(fields), tools, add_generation_prompt=generation)
    prompt = fields.text("prompt")
    if prompt is None:
        raise ApiError("prompt is missing: give a text, or messages", param="prompt")
    return served.llm.text.encode(prompt, add_bos=None if fields.flag("add_special_tokens", True) else False)


def gets(served: Served, check: Callable[[HttpRequest], None]) -> dict[str, Get]:
    """Paths to what answers them. check: raises ApiError where the key is wrong; health and metrics need none."""

    def guarded(answer: Callable[[HttpRequest], Any]) -> Get:
        async def get(request: HttpRequest) -> Response:
            try:
                check(request)
                return JsonResponse(answer(request))
            except (ApiError, MegrezError) as error:
                return as_api_error(error).response()

        return get

    def model(request: HttpRequest) -> dict[str, Any]:
        asked = request.path_params["model"]
        if asked != served.name:
            raise served.no_model(asked)
        return _model(served)

    async def health(request: HttpRequest) -> Response:
        return Response(status_code=200)

    async def ready(request: HttpRequest) -> Response:
        return Response(status_code=503 if served.draining else 200)

    async def metrics(request: HttpRequest) -> Response:
        return Response(served.metrics.render(), media_type=CONTENT_TYPE)

    return {
        "/v1/models": guarded(lambda request: {"object": "list", "data": [_model(served)]}),
        "/v1/models/{model:path}": guarded(model),
        "/tokenizer_info": guarded(lambda request: _tokenizer_info(served)),
        "/health": health,
        "/ready": ready,
        "/metrics": metrics,
    }


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "megrez",
        "max_model_len": served.llm.session.capacity,
    }


def _tokenizer_info(served: Served) -> dict[str, Any]:
    text, manifest = served.llm.text, served.llm.bundle.manifest
    ids = {"bos_token": manifest.tokens.bos, "pad_token": manifest.tokens.pad}
    ids["eos_token"] = manifest.tokens.stop[0] if manifest.tokens.stop else None
    template = served.llm.template
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": served.llm.session.capacity,
        "add_bos_token": manifest.tokens.add_bos,
        "chat_template": None if template is None else template.source,
        **{name: text.token_text(token) for name, token in ids.items()},
        "eos_token_ids": list(manifest.tokens.stop),
    }
