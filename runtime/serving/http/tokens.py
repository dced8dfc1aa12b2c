"""Endpoints without generation: models, health, metrics, and the tokenizer's."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Send

from megrez.runtime.errors import MegrezError
from megrez.runtime.serving.http.errors import ApiError, JsonResponse, as_api_error
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.metrics import CONTENT_TYPE
from megrez.runtime.serving.http.served import Served

Get = Callable[[HttpRequest], Awaitable[Response]]


async def tokenize(fields: Fields, served: Served, receive: Receive, send: Send) -> dict[str, Any]:
    """vLLM's /tokenize: of a prompt, or of messages."""
    served.check_model(fields)
    if "messages" in fields:
        ids = served.llm.encode_chat([one.data for one in fields.objects("messages")])
    else:
        prompt = fields.text("prompt")
        if prompt is None:
            raise ApiError("prompt is missing: give a text, or messages", param="prompt")
        special = fields.data.get("add_special_tokens", True)
        ids = served.llm.text.encode(prompt, add_bos=None if special else False)
    return {"tokens": ids, "count": len(ids), "max_model_len": served.llm.session.capacity}


async def detokenize(fields: Fields, served: Served, receive: Receive, send: Send) -> dict[str, Any]:
    served.check_model(fields)
    ids = fields.ids("tokens")
    if outside := [one for one in ids if not 0 <= one < served.llm.session.vocab_size]:
        raise ApiError(f"token id {outside[0]} is outside the model's vocabulary", param="tokens")
    return {"prompt": served.llm.text.decode(ids)}


def gets(served: Served, check: Callable[[HttpRequest], None]) -> dict[str, Get]:
    """Paths to what answers them. check: raises ApiError where the key is wrong; health checks need none."""

    def guarded(answer: Callable[[], Any]) -> Get:
        async def get(request: HttpRequest) -> Response:
            try:
                check(request)
                return JsonResponse(answer())
            except (ApiError, MegrezError) as error:
                return as_api_error(error).response()

        return get

    async def health(request: HttpRequest) -> Response:
        return Response(status_code=200)

    async def ready(request: HttpRequest) -> Response:
        return Response(status_code=503 if served.draining else 200)

    async def metrics(request: HttpRequest) -> Response:
        return Response(served.metrics.render(), media_type=CONTENT_TYPE)

    return {
        "/v1/models": guarded(lambda: {"object": "list", "data": [_model(served)]}),
        f"/v1/models/{served.name}": guarded(lambda: _model(served)),
        "/tokenizer_info": guarded(lambda: _tokenizer_info(served)),
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
