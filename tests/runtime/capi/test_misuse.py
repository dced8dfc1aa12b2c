"""What is wrong is an error code and one line: never an abort, never a hang."""

import ctypes
import os
import shutil
import signal
import threading

import pytest

from megrez.runtime.capi import host
from megrez.runtime.capi.status import Status
from tests.runtime.capi.conftest import CAPI
from tests.runtime.capi.driver import (
    BUNDLE,
    CANCELLED,
    ENGINE,
    HANDLE,
    INTERRUPTED,
    SIGNATURES,
    TIMEOUT,
    USAGE,
    Callback,
    Failed,
    Stats,
)

LONG = b'{"max_tokens": 900, "ignore_eos": true}'


def refused(call, *args, **named):
    with pytest.raises(Failed) as caught:
        call(*args, **named)
    assert caught.value.message and "\n" not in caught.value.message
    return caught.value.status, caught.value.message


@pytest.mark.parametrize("name", [name for name in SIGNATURES if "error" not in name and "version" not in name])
def test_null_everywhere(api, model, name):
    function = getattr(api.lib, name)
    nothing = [kind() if kind in (ctypes.c_size_t, ctypes.c_int64) else None for kind in SIGNATURES[name]]
    if Callback in SIGNATURES[name]:
        nothing[SIGNATURES[name].index(Callback)] = Callback()
    if name == "megrez_free":
        assert function(None) is None
    else:
        assert function(*nothing) in (USAGE, HANDLE)
        assert api.lib.megrez_last_error_message()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("tokenize", lambda model: (model, b"hi", None, ctypes.byref(ctypes.c_size_t()))),
        ("tokenize", lambda model: (model, None, ctypes.byref(ctypes.POINTER(ctypes.c_int32)()), None)),
        ("detokenize", lambda model: (model, None, 3, ctypes.byref(ctypes.c_void_p()), None)),
        ("options_set", lambda model: (None, b"threads", None)),
        ("submit", lambda model: (model, b"hi", None, None)),
        ("model_stats", lambda model: (model, ctypes.byref(Stats(size=8)))),
        ("wait", lambda model: (None, 1, 0, ctypes.byref(ctypes.c_size_t()))),
        ("wait", lambda model: ((ctypes.c_void_p * 1)(), 0, 0, ctypes.byref(ctypes.c_size_t()))),
    ],
)
def test_one_pointer_that_is_null_is_named(api, model, name, args):
    status, message = refused(api.do, name, *args(model))
    assert status == USAGE and (": give" in message or ": set" in message)


def test_options_out_of_range(api):
    options = api.options()
    for name, value, told in (
        ("threads", "0", "from 1 to 1024"),
        ("threads", "many", "from 1 to 1024"),
        ("slots", "-1", "from 1 to 4096"),
        ("slots", "9" * 400, "from 1 to 4096"),
        ("verify", "perhaps", "true or false"),
        ("speculate", "on", "give one of auto, always, off"),
        ("thread", "1", "the options are threads, slots"),
    ):
        status, message = refused(api.do, "options_set", options, name.encode(), value.encode())
        assert status == USAGE and told in message
    api.do("options_free", options)
    assert refused(api.do, "options_set", options, b"threads", b"1")[0] == HANDLE


def test_broken_bundles(api, bundles, tmp_path):
    assert refused(api.open, tmp_path / "none")[0] == BUNDLE
    (tmp_path / "manifest.json").write_text("{")
    assert refused(api.open, tmp_path)[0] == BUNDLE
    status, message = refused(api.open, bundles["fake"])  # an engine that this version does not have
    assert status == BUNDLE and "needs the engine 'fake'" in message
    status, message = refused(api.do, "open", b"\xff\xfe", None, ctypes.byref(ctypes.c_void_p()))
    assert (status, message) == (USAGE, "bundle is not UTF-8 (byte 0): convert it first")


def test_a_damaged_graph(api, ort_bundle, tmp_path):
    damaged = shutil.copytree(ort_bundle[1], tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"x" * (damaged / "model.onnx").stat().st_size)
    status, message = refused(api.open, damaged)
    assert status == ENGINE and "cannot load" in message
    assert refused(api.open, damaged, verify="true")[0] == BUNDLE
    (damaged / "model.onnx").unlink()
    status, message = refused(api.open, damaged)
    assert status == BUNDLE and "model.onnx is missing" in message


@pytest.mark.parametrize(
    ("request_text", "told"),
    [
        (b"{", "request is not valid JSON"),
        (b"[]", "request is []: give a JSON object"),
        (b'{"max_tokens": "many"}', "max_tokens must be an integer"),
        (b'{"max_tokens": 0}', "max_tokens must be an integer of 1 or more"),
        (b'{"temperature": 9}', "temperature must be a number of 0 to 2"),
        (b'{"guided_json": {"type": "object", "uniqueItems": true}}', "uniqueItems"),
        (b'{"guided_regex": "("}', "guided_regex: guided output cannot"),
        (b'{"guided_regex": "a", "guided_choice": ["b"]}', "give one of them"),
        (b'{"response_format": {"type": "yaml"}}', "response_format.type"),
        (b'{"tools": []}', "use megrez_submit_chat"),
        (b'{"stop_token_ids": [999]}', "stop_token_ids must be"),
        (b'{"a": "\xff"}', "request is not UTF-8 (byte 7)"),
        (b'{"a": ' + b"[" * 100_000, "request is not valid JSON"),
    ],
)
def test_bad_requests(api, model, request_text, told):
    status, message = refused(api.submit, model, b"hello", request_text)
    assert status == USAGE and told in message


@pytest.mark.parametrize(
    ("messages", "request_text", "told"),
    [
        (b"hi", None, "messages is not valid JSON"),
        (b"{}", None, "messages"),
        (b"[]", None, "messages is missing"),
        (b"[1]", None, "messages must be a list of objects"),
        (b'[{"content": "hi"}]', None, "has no role"),
        (None, None, "messages is missing"),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', None, "text"),
        (b'[{"role": "user", "content": "hi"}]', b'{"tool_choice": "required"}', "there are no tools"),
        (b'[{"role": "user", "content": "hi"}]', b'{"tools": [{}]}', "function"),
    ],
)
def test_bad_chats(api, model, messages, request_text, told):
    status, message = refused(api.submit, model, messages, request_text, chat=True)
    assert status == USAGE and told in message


def test_prompts_that_do_not_fit(api, open_model):
    model = open_model(context=5)
    for prompt, told in ((b"", "the prompt is empty"), (b"hello " * 9, "the context holds 5"), (None, "is NULL")):
        status, message = refused(api.submit, model, prompt)
        assert status == USAGE and told in message
    assert "outside the model's vocabulary" in refused(api.submit, model, None, b'{"prompt": [999]}')[1]
    assert "outside the vocabulary" in refused(api.detokenize, model, [-1])[1]
    assert "not UTF-8 (byte 1)" in refused(api.tokenize, model, b"a\x80")[1]


def test_closed_and_stale_handles(api, open_model):
    model = open_model()
    request = api.submit(model, b"hello", b'{"max_tokens": 2}')
    freed = api.submit(model, b"hello", LONG)
    api.do("request_free", freed)
    for call in (lambda: api.poll(freed), lambda: api.do("cancel", freed), lambda: api.do("request_free", freed)):
        assert refused(call)[0] == HANDLE
    assert "is of a request: give one of a model" in refused(api.tokenize, request, b"hi")[1]
    assert refused(api.wait, [request, freed])[0] == HANDLE
    api.do("close", model)
    for call in (
        lambda: api.do("close", model),
        lambda: api.tokenize(model, b"hi"),
        lambda: api.submit(model, b"hi"),
        lambda: api.poll(request),
        lambda: api.do("request_free", request),
        lambda: api.text("model_info", model),
        lambda: api.do("close", 2**64 - 1),
    ):
        assert refused(call)[0] == HANDLE


def test_closing_wakes_whoever_waits(api, open_model, monkeypatch):
    found_handle, poll = threading.Event(), host.streams.poll

    def poll_noted(*arguments):  # a handle that is looked up after closing has another error
        found_handle.set()
        return poll(*arguments)

    monkeypatch.setattr(host.streams, "poll", poll_noted)
    model = open_model("slow", slots=1)
    running = api.submit(model, b"hello", LONG)
    waiting = api.submit(model, b"hello", LONG)
    found = []

    def wait():
        try:
            found.append(api.poll(waiting))
        except Failed as error:
            found.append((error.status, error.message))

    thread = threading.Thread(target=wait)
    thread.start()
    assert found_handle.wait(30)
    assert isinstance(api.poll(running), dict)
    api.do("close", model)
    thread.join(30)
    assert found == [(HANDLE, "the model was closed before the answer was complete")]


def test_a_callback_may_close_its_own_model(api, open_model):
    model = open_model("slow")
    status, message = refused(api.generate, model, b"hello", LONG, lambda piece: api.do("close", model))
    assert status == HANDLE and "its model closed" in message


def test_a_callback_that_stops_after_it_closed_the_model(api, open_model):
    model = open_model("slow")

    def close_and_stop(piece):
        api.do("close", model)
        return 1

    assert api.generate(model, b"hello", LONG, close_and_stop)[0] == CANCELLED


def test_errors_belong_to_their_thread(api, model):
    refused(api.tokenize, model, b"\xff")
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append((api.lib.megrez_last_error(), api.lib.megrez_last_error_message()))
    )
    thread.start()
    thread.join()
    assert seen == [(0, b"")]
    assert api.lib.megrez_last_error() == USAGE


def test_long_messages_are_cut_between_characters(api):
    name = ("né" * 3000).encode()
    options = api.options()
    refused(api.do, "options_set", options, name, b"1")
    status, message = refused(api.open, "é" * 3000)
    assert status < 0 and len(message.encode()) <= 2047
    api.do("options_free", options)


def test_ctrl_c_while_a_python_program_waits(api, open_model):
    model = open_model("slow", slots=1)
    running = api.submit(model, b"hello", LONG)
    waiting = api.submit(model, b"hello", LONG)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        api.poll(waiting)
    timer.join()
    assert api.lib.megrez_last_error() == INTERRUPTED
    assert api.poll(waiting, 0) == TIMEOUT
    api.do("request_free", running)


def test_an_unexpected_exception_is_an_internal_error(api, model, monkeypatch):
    def broken(handle):
        raise KeyError("x")

    monkeypatch.setattr(host, "cancel", host.answers(broken))
    status, message = refused(api.do, "cancel", model)
    assert status == Status.ERROR_INTERNAL and message.startswith("internal error, please report it: KeyError")


def test_statuses_are_those_of_the_header():
    header = (CAPI / "include" / "megrez.h").read_text()
    for status in Status:
        assert f"MEGREZ_{status.name} = {status.value}" in header
