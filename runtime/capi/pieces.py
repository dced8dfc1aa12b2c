"""Tokens to pieces: the text and the function calls of each of a request's answers."""

from array import array
from collections.abc import Collection
from dataclasses import dataclass

from megrez.runtime.serving.http.errors import to_json
from megrez.runtime.serving.http.spelling import Spelling, chat_logprobs
from megrez.runtime.serving.http.tool_calls import AnswerReader
from megrez.runtime.serving.request import Token
from megrez.runtime.serving.tools.formats import ToolFormat
from megrez.runtime.serving.tools.parser import ArgumentsDelta, CallStart, Delta, TextDelta

TEXT, CALL, ARGUMENTS = 0, 1, 2
NOT_FINISHED = 0
_FINISH = {"stop": 1, "length": 2, "tool_calls": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """megrez_piece. logprobs: JSON, or empty. call: -1 for text. finish: 0 while more pieces follow."""

    text: str
    tokens: tuple[int, ...]
    logprobs: bytes
    kind: int
    index: int
    finish: int
    call: int
    seconds: float

    def packed(self) -> tuple[bytes, bytes, bytes, int, int, int, int, float]:
        """As megrez.c reads it. A lone surrogate, which UTF-8 does not have, becomes a question mark."""
        text = self.text.encode("utf-8", errors="replace")
        return (
            text,
            array("i", self.tokens).tobytes(),
            self.logprobs,
            self.kind,
            self.index,
            self.finish,
            self.call,
            self.seconds,
        )


class PieceReader:
    """The answers of one request. tool_format: None takes everything for text. names: of the functions."""

    def __init__(self, spelling: Spelling, tool_format: ToolFormat | None, names: Collection[str], count: int) -> None:
        self._spelling = spelling
        self._answers = [AnswerReader(tool_format, names) for _ in range(count)]

    def read(self, token: Token) -> list[Piece]:
        """One piece or more; the first carries the token, the last its answer's finish reason."""
        answer = self._answers[token.index]
        deltas: list[Delta] = answer.push(token) or [TextDelta(text="")]
        last = len(deltas) - 1
        finish = _FINISH.get(answer.finish_reason or "", NOT_FINISHED)
        return [
            Piece(
                text=delta.name if isinstance(delta, CallStart) else delta.text,
                tokens=(token.token,) if at == 0 else (),
                logprobs=self._logprobs(token) if at == 0 else b"",
                kind=_kind(delta),
                index=token.index,
                finish=finish if at == last else NOT_FINISHED,
                call=-1 if isinstance(delta, TextDelta) else delta.index,
                seconds=token.seconds if at == 0 else 0.0,
            )
            for at, delta in enumerate(deltas)
        ]

    def _logprobs(self, token: Token) -> bytes:
        if token.logprobs is None:
            return b""
        return to_json(chat_logprobs(self._spelling, [token.logprobs])["content"])


def _kind(delta: Delta) -> int:
    if isinstance(delta, TextDelta):
        return TEXT
    return ARGUMENTS if isinstance(delta, ArgumentsDelta) else CALL
