"""The JSON object of one call, character by character: its name and the text of its arguments; knows no markers."""

import json
from typing import Literal

_WHITE = " \t\n\r"
_DELIMITERS = _WHITE + ",}"
State = Literal["begin", "first key", "key", "colon", "value", "after", "done", "fault"]


class _Value:
    """Collects one JSON string, object or array; a number or a word ends where its owner sees a delimiter."""

    def __init__(self) -> None:
        self.text = ""
        self._depth, self._in_string, self._escaped = 0, False, False

    @property
    def is_word(self) -> bool:
        return self.text != "" and self.text[0] not in '"{['

    @property
    def is_nested(self) -> bool:
        return self.text[:1] in ("{", "[")

    def push(self, character: str) -> bool:
        """Take the character; whether the value is complete with it."""
        self.text += character
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif not self.is_word:
            self._depth += (character in "{[") - (character in "}]")
        return not (self._in_string or self._depth or self.is_word)


class CallBody:
    """Push characters until `state` is "done" or "fault", where the character was not taken.

    name: None until it is known. arguments: their text so far, which only grows. arguments_key: the member that holds
    them: an object, or a string that holds one. only_known: whether members that no call has are a fault. Within
    values, nothing is checked but strings and brackets.
    """

    def __init__(self, arguments_key: str, *, only_known: bool = False) -> None:
        self._arguments_key, self._only_known = arguments_key, only_known
        self.state: State = "begin"
        self.name: str | None = None
        self.arguments = ""
        self._key, self._value = "", _Value()

    def push(self, character: str) -> None:
        if self.state in ("first key", "key") and (self._value.text or character == '"'):
            if self._value.push(character):
                self._end_key()
        elif self.state == "value" and (self._value.text or character not in _DELIMITERS):
            self._push_value(character)
        elif character not in _WHITE:
            self._push_mark(character)

    def _push_mark(self, character: str) -> None:
        after: dict[tuple[State, str], State] = {
            ("begin", "{"): "first key",
            ("first key", "}"): "done",
            ("colon", ":"): "value",
            ("after", ","): "key",
            ("after", "}"): "done",
        }
        self.state = after.get((self.state, character), "fault")
        if self.state == "done" and not self.name:
            self.state = "fault"

    def _end_key(self) -> None:
        key = _string(self._value.text)
        known = key in ("name", self._arguments_key, "type", "id")
        self._key, self._value = key or "", _Value()
        self.state = "fault" if key is None or (self._only_known and not known) else "colon"

    def _push_value(self, character: str) -> None:
        if self._value.is_word and character in _DELIMITERS:
            self._end_value()
            if self.state == "after":
                self.push(character)
            return
        complete = self._value.push(character)
        if self._key == self._arguments_key and self._value.is_nested:
            self.arguments += character
        if complete:
            self._end_value()

    def _end_value(self) -> None:
        text = self._value.text
        self.state, self._value = "after", _Value()
        if self._key == "name":
            self.name = _string(text)
            self.state = "after" if self.name else "fault"
        elif self._key == self._arguments_key and text[0] not in "{[":
            inner = _string(text) if text[0] == '"' else "{}" if text == "null" else text
            self.arguments = inner or "{}"
            self.state = "fault" if inner is None else "after"


def _string(text: str) -> str | None:
    """The value of a JSON string; None for any other text."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
