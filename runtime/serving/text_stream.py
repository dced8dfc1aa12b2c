"""The text of one sequence, token by token, up to a stop string; independent of requests."""

from typing import Literal, Protocol

from megrez.runtime.stops import StopStrings

FinishReason = Literal["stop", "length", "cancelled"]


class TokenText(Protocol):
    """Decodes tokens incrementally; see megrez.runtime.text.Detokenizer."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """detokenizer: None for callers that need token ids only; stop strings then have no effect."""

    def __init__(self, detokenizer: TokenText | None, stops: StopStrings) -> None:
        self._detokenizer, self._stops = detokenizer, stops

    def push(self, token: int, *, hidden: bool, last: bool) -> tuple[str, str | None]:
        """The text that can be shown now, and the stop string that ended it, if any.

        hidden: leave out the token's text, as that of stop strings. last: no token follows.
        """
        if self._detokenizer is None:
            return "", None
        text = "" if hidden else self._stops.push(self._detokenizer.push(token))
        if last and not self._stops.found:
            text += self._stops.push(self._detokenizer.flush())
        if self._stops.found:
            return text, self._stops.matched
        return (text + self._stops.flush() if last else text), None
