"""Find stop strings in a text that arrives in pieces; knows no tokens."""

from collections.abc import Sequence

from megrez.runtime.errors import UsageError


class StopStrings:
    """Lets text through up to the first stop string, and holds back only what may still become one.

    Where several match, the one that is complete first wins, so the outcome does not depend on how text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise UsageError(f"stop is the text {stops!r}: give a list of stop strings")
        if "" in stops:
            raise UsageError("a stop string is empty: give one of at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    @property
    def found(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> str:
        """The part of all text so far that is now certain; after it, `found` says whether a stop string ended it."""
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            _, at, self.matched = min(matches)
            self._held = ""
            return text[:at]
        certain = len(text) - self._open_tail(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        text, self._held = self._held, ""
        return text

    def _open_tail(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
