"""megrez.h through ctypes, in this process; not a test. Statuses below 0 are raised as Failed."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

OK, TIMEOUT, END, CANCELLED = range(4)
USAGE, HANDLE, BUNDLE, ENGINE, MISSING, QUEUE_FULL, PYTHON, FORKED, SYSTEM, INTERRUPTED, INTERNAL = range(-1, -12, -1)
TEXT, CALL, ARGUMENTS = range(3)


class Piece(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("text", c_void_p),
        ("text_size", c_size_t),
        ("tokens", POINTER(c_int32)),
        ("token_count", c_size_t),
        ("kind", c_int32),
        ("index", c_int32),
        ("finish_reason", c_int32),
        ("call", c_int32),
        ("seconds", c_double),
        ("logprobs", c_char_p),
    )

    @property
    def string(self) -> str:
        return ctypes.string_at(self.text, self.text_size).decode()

    @property
    def ids(self) -> list[int]:
        return self.tokens[: self.token_count]


class Usage(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("prompt_tokens", c_int64),
        ("cached_tokens", c_int64),
        ("output_tokens", c_int64),
    )


class Stats(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("running", c_int64),
        ("waiting", c_int64),
        ("cached_tokens", c_int64),
        ("requests", c_int64),
        ("prompt_tokens", c_int64),
        ("output_tokens", c_int64),
    )


Callback = ctypes.CFUNCTYPE(c_int32, POINTER(Piece), c_void_p)
# What each function takes; all but those of OTHER return a status.
SIGNATURES = {
    "megrez_abi_version": (),
    "megrez_version": (),
    "megrez_last_error": (),
    "megrez_last_error_message": (),
    "megrez_options_create": (POINTER(c_void_p),),
    "megrez_options_set": (c_void_p, c_char_p, c_char_p),
    "megrez_options_free": (c_void_p,),
    "megrez_open": (c_char_p, c_void_p, POINTER(c_void_p)),
    "megrez_close": (c_void_p,),
    "megrez_model_info": (c_void_p, POINTER(c_void_p)),
    "megrez_model_stats": (c_void_p, POINTER(Stats)),
    "megrez_tokenize": (c_void_p, c_char_p, POINTER(POINTER(c_int32)), POINTER(c_size_t)),
    "megrez_detokenize": (c_void_p, POINTER(c_int32), c_size_t, POINTER(c_void_p), POINTER(c_size_t)),
    "megrez_render_chat": (c_void_p, c_char_p, c_char_p, POINTER(c_void_p)),
    "megrez_json_quote": (c_char_p, POINTER(c_void_p)),
    "megrez_generate": (c_void_p, c_char_p, c_char_p, Callback, c_void_p, POINTER(c_void_p)),
    "megrez_chat": (c_void_p, c_char_p, c_char_p, Callback, c_void_p, POINTER(c_void_p)),
    "megrez_submit": (c_void_p, c_char_p, c_char_p, POINTER(c_void_p)),
    "megrez_submit_chat": (c_void_p, c_char_p, c_char_p, POINTER(c_void_p)),
    "megrez_poll": (c_void_p, c_int64, POINTER(POINTER(Piece))),
    "megrez_wait": (POINTER(c_void_p), c_size_t, c_int64, POINTER(c_size_t)),
    "megrez_cancel": (c_void_p,),
    "megrez_request_usage": (c_void_p, POINTER(Usage)),
    "megrez_request_free": (c_void_p,),
    "megrez_free": (c_void_p,),
}
OTHER = {
    "megrez_abi_version": c_uint32,
    "megrez_version": c_char_p,
    "megrez_last_error_message": c_char_p,
    "megrez_free": None,
}


class Failed(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Api:
    """The raw functions are attributes of `lib`; the methods take and return Python values."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        for name, takes in SIGNATURES.items():
            function = getattr(self.lib, name)
            function.argtypes, function.restype = takes, OTHER.get(name, c_int32)

    def do(self, name, *args) -> int:
        status = getattr(self.lib, f"megrez_{name}")(*args)
        if status < 0:
            assert self.lib.megrez_last_error() == status
            raise Failed(status, self.lib.megrez_last_error_message().decode())
        return status

    def open(self, bundle, **options) -> int:
        handle = c_void_p()
        chosen = self.options(**options)
        try:
            self.do("open", str(bundle).encode(), chosen, byref(handle))
        finally:
            self.do("options_free", chosen)
        return handle.value

    def options(self, **options) -> int:
        handle = c_void_p()
        self.do("options_create", byref(handle))
        for name, value in options.items():
            self.do("options_set", handle, name.encode(), str(value).encode())
        return handle.value

    def text(self, name, *args) -> str:
        """Of a function whose last parameter is char **."""
        out = c_void_p()
        self.do(name, *args, byref(out))
        return self.taken(out)

    def taken(self, out) -> str:
        text = ctypes.string_at(out.value).decode()
        self.lib.megrez_free(out)
        return text

    def tokenize(self, model, text: bytes) -> list[int]:
        tokens, count = POINTER(c_int32)(), c_size_t()
        self.do("tokenize", model, text, byref(tokens), byref(count))
        found = tokens[: count.value]
        self.lib.megrez_free(tokens)
        return found

    def detokenize(self, model, ids) -> bytes:
        out, size = c_void_p(), c_size_t()
        self.do("detokenize", model, (c_int32 * len(ids))(*ids), len(ids), byref(out), byref(size))
        found = ctypes.string_at(out.value, size.value)
        self.lib.megrez_free(out)
        return found

    def generate(self, model, prompt, request=None, on_piece=None, *, chat=False) -> tuple[int, str]:
        """(status, text). on_piece: gets copies of the pieces' fields."""
        out = c_void_p()
        callback = Callback(lambda piece, data: on_piece(fields(piece.contents)) or 0) if on_piece else Callback()
        name = "chat" if chat else "generate"
        status = self.do(name, model, prompt, request, callback, None, byref(out))
        return status, self.taken(out)

    def submit(self, model, prompt, request=None, *, chat=False) -> int:
        handle = c_void_p()
        self.do("submit_chat" if chat else "submit", model, prompt, request, byref(handle))
        return handle.value

    def poll(self, request, timeout_ms=-1):
        """A dict of the piece's fields, or the status."""
        piece = POINTER(Piece)()
        status = self.do("poll", request, timeout_ms, byref(piece))
        if status != OK:
            assert not piece
            return status
        found = fields(piece.contents)
        self.lib.megrez_free(piece)
        return found

    def drain(self, request) -> tuple[list[dict], int]:
        """All pieces, and the status that ended them."""
        pieces = []
        while isinstance(found := self.poll(request), dict):
            pieces.append(found)
        return pieces, found

    def wait(self, requests, timeout_ms=-1) -> int | None:
        ready = c_size_t()
        status = self.do("wait", (c_void_p * len(requests))(*requests), len(requests), timeout_ms, byref(ready))
        return ready.value if status == OK else None

    def usage(self, request) -> tuple[int, int, int]:
        found = Usage(size=ctypes.sizeof(Usage))
        self.do("request_usage", request, byref(found))
        return found.prompt_tokens, found.cached_tokens, found.output_tokens

    def stats(self, model) -> Stats:
        found = Stats(size=ctypes.sizeof(Stats))
        self.do("model_stats", model, byref(found))
        return found


def fields(piece: Piece) -> dict:
    return {
        "text": piece.string,
        "ids": piece.ids,
        "kind": piece.kind,
        "index": piece.index,
        "finish": piece.finish_reason,
        "call": piece.call,
        "logprobs": piece.logprobs,
    }
