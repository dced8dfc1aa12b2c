"""Tokens to messages with tool calls, in OpenAI's format and for Anthropic's; independent of HTTP requests."""

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from megrez.runtime.serving.request import Token
from megrez.runtime.serving.tools.formats import ToolFormat
from megrez.runtime.serving.tools.parser import CallStart, Delta, TextDelta, ToolParser, joined


class AnswerReader:
    """Parses one answer token by token. tool_format: None treats everything as text. names: of the functions."""

    def __init__(self, tool_format: ToolFormat | None = None, names: Collection[str] = ()) -> None:
        self._parser = None if tool_format is None or not names else ToolParser(tool_format, names)
        self.finish_reason: str | None = None

    def push(self, token: Token) -> list[Delta]:
        """The deltas that the token completes; the last token flushes the parser and sets `finish_reason`."""
        if self._parser is None:
            self.finish_reason = token.finish_reason
            return [TextDelta(text=token.text)] if token.text else []
        deltas = self._parser.push(token.text)
        if token.finish_reason is None:
            return deltas
        whole = self._parser.calls > 0 and not self._parser.is_open
        self.finish_reason = "tool_calls" if whole and token.finish_reason == "stop" else token.finish_reason
        return joined(deltas + self._parser.flush())


@dataclass(slots=True, kw_only=True)
class FunctionCall:
    """arguments: JSON as the model wrote it, incomplete where the answer was cut."""

    name: str
    arguments: str = ""


def blocks(deltas: Iterable[Delta]) -> list[str | FunctionCall]:
    """The texts and calls of a complete answer, in order."""
    found: list[str | FunctionCall] = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, CallStart):
            found.append(FunctionCall(name=delta.name))
        elif isinstance(delta, TextDelta):
            if isinstance(last, str):
                found[-1] = last + delta.text
            else:
                found.append(delta.text)
        else:
            assert isinstance(last, FunctionCall)
            last.arguments += delta.text
    return found


def openai_message(deltas: Iterable[Delta]) -> dict[str, Any]:
    """A complete answer as a message; its content is null where there are only calls."""
    found = blocks(deltas)
    text = "".join(one for one in found if isinstance(one, str))
    calls = [one for one in found if isinstance(one, FunctionCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": new_id("call"), "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for one in calls
        ]
    return message


def openai_delta(delta: Delta) -> dict[str, Any]:
    """A chunk's delta: id, type and name of a call once, then its arguments in pieces."""
    if isinstance(delta, TextDelta):
        return {"content": delta.text}
    if isinstance(delta, CallStart):
        function = {"name": delta.name, "arguments": ""}
        head = {"index": delta.index, "id": new_id("call"), "type": "function"}
        return {"tool_calls": [{**head, "function": function}]}
    return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"
