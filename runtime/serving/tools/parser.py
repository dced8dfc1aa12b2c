"""Function calls out of an answer's text as it arrives; knows neither tokens nor HTTP.

However the text is cut into pieces, the deltas join to the same.
"""

from collections.abc import Collection
from dataclasses import dataclass

from megrez.runtime.serving.tools.call_body import CallBody
from megrez.runtime.serving.tools.formats import ToolFormat

_WHITE = " \t\n\r"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """More of the answer's text outside calls."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """Call `index` (0, 1, … within the answer) begins; its name comes once."""

    index: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentsDelta:
    """More of the JSON text of the arguments of call `index`."""

    index: int
    text: str


Delta = TextDelta | CallStart | ArgumentsDelta


class ToolParser:
    """One answer. Push pieces of text, flush once at its end; neither raises, whatever the model generates.

    What is no call stays text, its marker included. A call that goes wrong after its name was given keeps what was
    given, and what follows is text. White space around calls is dropped.
    names: of the functions; of a format whose calls may lack a marker, only these are calls. None takes any.
    """

    def __init__(self, tool_format: ToolFormat, names: Collection[str] | None = None) -> None:
        self._format, self._names = tool_format, names
        self._deltas: list[Delta] = []
        self._held = ""  # white space, and then what may become a marker
        self._body: CallBody | None = None
        self._raw = ""  # of the open call, while its name is not known
        self._ending: str | None = None  # what may become the end marker
        self._given = 0  # characters of the open call's arguments
        self._started = False
        self._bare = tool_format.bare  # whether a call may begin here without a marker
        self.calls = 0

    @property
    def is_open(self) -> bool:
        """Whether a call has begun whose object is not complete."""
        return self._body is not None and self._started

    def push(self, text: str) -> list[Delta]:
        """What became certain with `text`."""
        for character in text:
            self._push(character)
        return self._take()

    def flush(self) -> list[Delta]:
        """What was held back, once no more text can come. The arguments of an open call stay cut."""
        if self._body is not None and not self._started:
            self._say(self._raw)
        elif self._body is None and (self._held.strip(_WHITE) or not self.calls):
            self._say(self._held)
        self._body, self._raw, self._held = None, "", ""
        return self._take()

    def _push(self, character: str) -> None:
        if self._body is not None:
            self._push_call(character)
        elif self._ending is not None:
            self._push_end(character)
        else:
            self._push_text(character)

    def _push_text(self, character: str) -> None:
        self._held += character
        # Calls without markers have a semicolon or a comma between them.
        words = self._held.lstrip(_WHITE + (";," if self._bare and self.calls else ""))
        begin = self._format.begin
        if self._bare and words == "{":
            self._open(self._held[:-1])
            self._push_call(character)
        elif words == begin:
            self._open(self._held)
        elif words and not begin.startswith(words):
            self._bare = False
            keep = _tail(self._held, begin)
            self._say(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]

    def _open(self, raw: str) -> None:
        bare = self._format.bare
        self._body = CallBody(self._format.arguments_key, only_known=bare)
        self._raw, self._held, self._given, self._started = raw, "", 0, False

    def _push_call(self, character: str) -> None:
        body = self._body
        assert body is not None
        body.push(character)
        if body.name is not None and not self._started and self._is_unknown(body.name):
            body.state = "fault"
        if self._format.bare and body.state == "done" and not body.arguments:
            body.state = "fault"  # a JSON answer that only has a name
        if body.state == "fault":
            self._fail(character)
            return
        if not self._started:
            self._raw += character
            if body.name is None or (self._format.bare and not (body.arguments or body.state == "done")):
                return
            self._deltas.append(CallStart(index=self.calls, name=body.name))
            self._started, self._raw = True, ""
            self.calls += 1
        done = body.state == "done"
        self._give(body.arguments or ("{}" if done else ""))
        if done:
            self._body, self._ending, self._bare = None, "", self._format.bare

    def _is_unknown(self, name: str) -> bool:
        return self._format.bare and self._names is not None and name not in self._names

    def _fail(self, character: str) -> None:
        """The call is none, from `character` on: what was not given of it is text."""
        self._body, self._bare = None, False
        self._say(self._raw)
        self._raw = ""
        self._push(character)

    def _push_end(self, character: str) -> None:
        """Take the end marker behind a call, if it comes."""
        assert self._ending is not None
        self._ending += character
        words = self._ending.lstrip(_WHITE)
        if words == self._format.end != "":
            self._ending = None
        elif not self._format.end or not self._format.end.startswith(words):
            rest, self._ending = self._ending, None
            for one in rest:
                self._push(one)

    def _give(self, arguments: str) -> None:
        if fresh := arguments[self._given :]:
            self._deltas.append(ArgumentsDelta(index=self.calls - 1, text=fresh))
            self._given = len(arguments)

    def _say(self, text: str) -> None:
        if text:
            self._deltas.append(TextDelta(text=text))

    def _take(self) -> list[Delta]:
        taken, self._deltas = joined(self._deltas), []
        return taken


def joined(deltas: list[Delta]) -> list[Delta]:
    """The deltas with neighbours of one kind as one."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
            found[-1] = TextDelta(text=last.text + delta.text)
        elif isinstance(delta, ArgumentsDelta) and isinstance(last, ArgumentsDelta) and delta.index == last.index:
            found[-1] = ArgumentsDelta(index=last.index, text=last.text + delta.text)
        else:
            found.append(delta)
    return found


def _tail(text: str, marker: str) -> int:
    """The length of the end of `text` that is white space, and may become white space and the marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-length:]):
            break
    else:
        length = 0
    words = text[: len(text) - length]
    return length + len(words) - len(words.rstrip(_WHITE))
