"""Log-probabilities in OpenAI's two JSON forms, with the text and the bytes of each single token."""

import re
from collections.abc import Sequence
from typing import Any

from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.text import Text

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE, _REPLACEMENT = "▁", "\ufffd"


def _byte_level() -> dict[str, int]:
    """Byte-level BPE's characters for bytes: printable ones stand for themselves, the others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_level()


class Spelling:
    """The text and the bytes of single tokens of one tokenizer; texts are cached."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._known: dict[int, str] = {}

    def text(self, token: int) -> str:
        """The text of one token; an incomplete UTF-8 character is U+FFFD."""
        if token not in self._known:
            spelled = self._text.decode([token])
            word = self._text.token_text(token) or ""
            # Llama-2's decoder strips the leading space, here of every token.
            lost = word.startswith(_SPACE) and not spelled.startswith(" ")
            self._known[token] = " " + spelled if lost else spelled
        return self._known[token]

    def bytes(self, token: int) -> list[int] | None:
        """The bytes of one token, also of an incomplete UTF-8 character; None where they are not known."""
        spelled, word = self.text(token), self._text.token_text(token) or ""
        if fallback := _BYTE_FALLBACK.fullmatch(word):
            return [int(fallback[1], 16)]
        if _REPLACEMENT not in spelled:
            return list(spelled.encode())
        return [_BYTES[one] for one in word] if word and all(one in _BYTES for one in word) else None


def legacy_logprobs(
    spelling: Spelling, entries: Sequence[TokenLogprobs | None], offset: int, first: int | None = None
) -> dict[str, Any]:
    """The arrays of /v1/completions. An entry of None is the first token of an echoed prompt, `first`, which has none.

    offset: characters before the first entry.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        token = spelling.text(entry.token if entry is not None else first or 0)
        found["tokens"].append(token)
        found["token_logprobs"].append(None if entry is None else entry.logprob)
        found["top_logprobs"].append(None if entry is None else _by_spelling(spelling, entry))
        found["text_offset"].append(offset)
        offset += len(token)
    return found


def _by_spelling(spelling: Spelling, entry: TokenLogprobs) -> dict[str, float]:
    """By text, the most probable token first; of tokens with the same text only the more probable one is kept."""
    top: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token, entry.logprob)):
        top.setdefault(spelling.text(token), logprob)
    return top


def chat_logprobs(spelling: Spelling, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The list of tokens of /v1/chat/completions."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": logprob, "bytes": spelling.bytes(token)}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in one.top]}
        for one in entries
    ]
    return {"content": content, "refusal": None}
