"""What libmegrez.so calls: functions of megrez.h have their namesakes here, and handles are numbers.

Each returns (status, value) and raises nothing; text is bytes. megrez.c knows what it passes and gets.
"""

import atexit
import functools
import json
import threading
from array import array
from collections.abc import Callable
from typing import ParamSpec

from megrez.runtime.capi import asks, streams
from megrez.runtime.capi.asks import Ask, decode, read_chat, read_completion
from megrez.runtime.capi.handles import Handles, Opened, Options, Submitted
from megrez.runtime.capi.options import OpenOptions
from megrez.runtime.capi.pieces import PieceReader
from megrez.runtime.capi.status import HandleError, Status, message_of, status_of
from megrez.runtime.errors import MegrezError, UsageError
from megrez.runtime.serving.http.errors import to_json
from megrez.runtime.serving.http.spelling import Spelling
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.tools.formats import choose_format

Given = ParamSpec("Given")
Answer = tuple[int, object]


# Of everything that is open; its lock is for the counts too.
HANDLES = Handles()


def answers(function: Callable[Given, object]) -> Callable[Given, Answer]:
    """Make the function return (status, value): its own Status, or OK and what it returns, or the error it raises."""

    @functools.wraps(function)
    def call(*args: Given.args, **named: Given.kwargs) -> Answer:
        try:
            found = function(*args, **named)
        except BaseException as error:
            return int(status_of(error)), message_of(error).encode("utf-8", errors="replace")
        return (int(found), None) if isinstance(found, Status) else (0, found)

    return call


@answers
def options_create() -> int:
    return HANDLES.keep(Options())


@answers
def options_set(handle: int, name: bytes, value: bytes) -> None:
    options = HANDLES.find(handle, Options)
    with HANDLES.lock:
        options.chosen = options.chosen.having(decode(name, "name"), decode(value, "value"))


@answers
def options_free(handle: int) -> None:
    HANDLES.drop(handle, Options)


@answers
def open_model(bundle: bytes, options: int) -> int:
    chosen = HANDLES.find(options, Options).chosen if options else OpenOptions()
    llm = LLM(
        decode(bundle, "bundle"),
        slots=chosen.slots,
        context=chosen.context,
        threads=chosen.threads,
        queue_limit=chosen.queue_limit,
        verify=chosen.verify,
        speculate=chosen.speculate,
        draft=chosen.draft,
    )
    return HANDLES.keep(Opened(llm=llm, spelling=Spelling(llm.text), tool_format=choose_format(llm.template, llm.text)))


@answers
def close_model(handle: int) -> None:
    model, requests = HANDLES.drop_model(handle)
    for submitted in requests:  # before the engine ends them with an error of its own
        submitted.stream.close(_closed())
    model.llm.close()


@answers
def shut_down() -> None:
    """Close all models: the process ends."""
    for model in HANDLES.clear():
        model.llm.close()


# In a program that is no Python itself, megrez.c calls it.
atexit.register(shut_down)


@answers
def model_info(handle: int) -> bytes:
    model = HANDLES.find(handle, Opened)
    llm, manifest = model.llm, model.llm.bundle.manifest
    sampling = manifest.sampling
    return to_json(
        {
            "bundle": str(llm.bundle.path),
            "target": manifest.target,
            "engine": manifest.engine,
            "model_type": manifest.architecture.model_type,
            "context": llm.session.capacity,
            "slots": llm.session.slots,
            "vocab_size": llm.session.vocab_size,
            "stop_ids": list(manifest.tokens.stop),
            "kv_bytes_per_token": manifest.kv_cache.bytes_per_token,
            "has_chat_template": llm.template is not None,
            "tool_format": None if model.tool_format is None else model.tool_format.name,
            "sampling": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
            },
        }
    )


@answers
def model_stats(handle: int) -> tuple[int, ...]:
    model = HANDLES.find(handle, Opened)
    running, waiting, cached = model.llm.load()
    with HANDLES.lock:
        live = sum(one.stream.output_tokens for one in HANDLES.requests_of(model))
        return running, waiting, cached, model.requests, model.prompt_tokens, model.output_tokens + live


@answers
def tokenize(handle: int, text: bytes) -> bytes:
    return array("i", HANDLES.find(handle, Opened).llm.text.encode(decode(text, "text"))).tobytes()


@answers
def detokenize(handle: int, packed: bytes) -> bytes:
    llm, ids = HANDLES.find(handle, Opened).llm, array("i", packed)
    if outside := [one for one in ids if not 0 <= one < llm.session.vocab_size]:
        raise UsageError(f"token id {outside[0]} is outside the vocabulary of {llm.session.vocab_size}: give others")
    return llm.text.decode(ids).encode("utf-8", errors="replace")


@answers
def render_chat(handle: int, messages: bytes | None, request: bytes | None) -> bytes:
    model = HANDLES.find(handle, Opened)
    return asks.render_chat(model, request, messages).encode("utf-8", errors="replace")


@answers
def json_quote(text: bytes) -> bytes:
    return json.dumps(decode(text, "text"), ensure_ascii=False).encode()


@answers
def submit(handle: int, prompt: bytes | None, request: bytes | None) -> int:
    model = HANDLES.find(handle, Opened)
    return _submit(handle, model, read_completion(model.llm, request, prompt))


@answers
def submit_chat(handle: int, messages: bytes | None, request: bytes | None) -> int:
    model = HANDLES.find(handle, Opened)
    return _submit(handle, model, read_chat(model, request, messages))


@answers
def poll(handle: int, timeout_ms: int) -> object:
    found = streams.poll(HANDLES.find(handle, Submitted).stream, _seconds(timeout_ms))
    return found if isinstance(found, Status) else found.packed()


@answers
def wait(packed: bytes, timeout_ms: int) -> object:
    handles = array("L", packed)
    if not handles:
        raise UsageError("there are no requests to wait for: give at least one")
    ready = streams.wait([HANDLES.find(one, Submitted).stream for one in handles], _seconds(timeout_ms))
    return Status.TIMEOUT if ready is None else ready


@answers
def cancel(handle: int) -> None:
    _cancel(HANDLES.find(handle, Submitted))


@answers
def request_usage(handle: int) -> tuple[int, ...]:
    submitted = HANDLES.find(handle, Submitted)
    stream = submitted.stream
    return len(submitted.request.prompt_ids), stream.cached_tokens, stream.output_tokens


@answers
def request_free(handle: int) -> None:
    submitted = HANDLES.drop(handle, Submitted)
    _cancel(submitted)
    with HANDLES.lock:
        submitted.model.output_tokens += submitted.stream.output_tokens


def _submit(handle: int, model: Opened, ask: Ask) -> int:
    pieces = PieceReader(model.spelling, model.tool_format, ask.functions, ask.params.n)
    stream = streams.Stream(sequences=ask.params.n, read=pieces.read)
    try:
        request = model.llm.submit(ask.prompt, ask.params, stream.put, ask.grammar)
    except MegrezError:
        if handle in HANDLES:
            raise
        raise _closed() from None
    submitted = Submitted(model=model, request=request, stream=stream)
    with HANDLES.lock:
        if handle in HANDLES:
            model.requests += 1
            model.prompt_tokens += len(ask.prompt)
            return HANDLES.keep(submitted)
    model.llm.cancel(request)
    raise _closed()


def _cancel(submitted: Submitted) -> None:
    if submitted.stream.cancel():
        submitted.model.llm.cancel(submitted.request)


def _closed() -> HandleError:
    return HandleError("the model was closed before the answer was complete")


def _seconds(timeout_ms: int) -> float | None:
    return None if timeout_ms < 0 else min(timeout_ms / 1000, threading.TIMEOUT_MAX)
