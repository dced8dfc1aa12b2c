"""Wraps text at the width of a terminal while it streams; independent of the terminal itself."""

import re
import unicodedata

_TAB = 8
_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")


class Wrapper:
    """Breaks lines between words, and between wide characters (Chinese, Japanese, Korean), which count two columns.

    The last word is held back until it is complete. Lines of fenced code blocks and words wider than a line are never
    broken. Only line breaks are inserted, some in place of spaces; everything else is passed on unchanged.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0  # of what was returned
        self._word, self._spaces = "", ""  # held back: the spaces come first
        self._line = ""  # since the last line break of the text itself
        self._fence = ""  # of the code block that is open
        self._last = ""  # of a word that is wider than a line, the last character returned

    def push(self, text: str) -> str:
        """The part of the text that can be printed now."""
        return "".join(map(self._push_character, text))

    def flush(self) -> str:
        """The rest, at the end of the text."""
        return self._end_word() + self._take_spaces()

    def _push_character(self, character: str) -> str:
        if character == "\n":
            return self._end_line()
        self._line += character
        if self._fence:
            return character
        if character in " \t":
            shown = self._end_word()
            self._spaces += character
            return shown
        if self._last and not _may_break(self._last, character):
            self._column += columns_of(character)
            self._last = character
            return character
        shown = self._end_word() if self._last or (self._word and _may_break(self._word[-1], character)) else ""
        self._word += character
        if columns_of(self._word) > self._width:
            last = self._word[-1]
            shown += self._end_word()
            self._last = last
        return shown

    def _end_word(self) -> str:
        """Return the word that is held back, on this line or the next."""
        if self._last:
            self._last = ""
            self._column = (self._column - 1) % self._width + 1  # where the terminal has wrapped to
        if not self._word:
            return ""
        word, self._word = self._word, ""
        if self._column and self._column + self._columns_of_spaces() + columns_of(word) > self._width:
            self._spaces = ""
            self._column = columns_of(word)
            return "\n" + word
        spaces = self._take_spaces()
        self._column += columns_of(word)
        return spaces + word

    def _end_line(self) -> str:
        shown = self._end_word() + self._take_spaces() + "\n"
        line, self._line, self._column = self._line, "", 0
        found = _FENCE.match(line)
        if found and self._fence:
            closes = found[1].startswith(self._fence) and not found[2].strip()
            self._fence = "" if closes else self._fence
        elif found and "`" not in found[2]:
            self._fence = found[1]
        return shown

    def _take_spaces(self) -> str:
        self._column += self._columns_of_spaces()
        spaces, self._spaces = self._spaces, ""
        return spaces

    def _columns_of_spaces(self) -> int:
        column = self._column
        for space in self._spaces:
            column += _TAB - column % _TAB if space == "\t" else 1
        return column - self._column


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters that no space separates."""
    widths = _columns(before), _columns(after)
    closes = unicodedata.category(after) in ("Po", "Pe", "Pf")
    opens = unicodedata.category(before) in ("Ps", "Pi")
    return 2 in widths and 0 not in widths and not closes and not opens
