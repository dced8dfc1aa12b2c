"""The text of one sequence, token by token, up to a stop string; knows no request."""

from typing import Literal, Protocol

from megrez.runtime.stops import StopStrings

FinishReason = Literal["stop", "length", "cancelled"]


class TokenText(Protocol):
    """What turns tokens into text; see megrez.runtime.text.Detokenizer."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """detokenizer: None for callers that want ids alone, for whom stop strings do nothing."""

    def __init__(self, detokenizer: TokenText | None, stops: StopStrings) -> None:
        self._detokenizer, self._stops = detokenizer, stops

    def push(self, token: int, *, hidden: bool, last: bool) -> tuple[str, str | None]:
        """The text that is certain now, and the stop string that ended it, if one did.

        hidden: nothing is shown of the token, as of a stop string. last: no token follows.
        """
        if self._detokenizer is None:
            return "", None
        text = "" if hidden else self._stops.push(self._detokenizer.push(token))
        if last and not self._stops.found:
            text += self._stops.push(self._detokenizer.flush())
        if self._stops.found:
            return text, self._stops.matched
        return (text + self._stops.flush() if last else text), None
