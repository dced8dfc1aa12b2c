import itertools

import pytest

from megrez.runtime.errors import UsageError
from megrez.runtime.stops import StopStrings


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.found:
            return out, True
    return out + matcher.flush(), False


def first_complete(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition, naively: grow the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@pytest.mark.parametrize("stops", [["END"], ["ab", "aab"], ["abc", "b"], ["aa"], ["xyz"], ["cab", "abcab"]])
@pytest.mark.parametrize("text", ["helloENDmore", "aaab", "abababc", "abcab", "xyxyxyz", "EN", ""])
def test_the_outcome_is_the_definitions_however_the_text_is_cut(stops, text):
    expected = first_complete(stops, text)
    for cuts in itertools.product([False, True], repeat=max(0, min(len(text) - 1, 6))):
        borders = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
        assert feed(stops, pieces) == expected


def test_only_what_may_become_a_stop_string_is_held_back():
    matcher = StopStrings(["</end>"])
    assert matcher.push("one <") == "one "
    assert matcher.push("/e") == ""
    assert matcher.push("lse") == "</else"


def test_without_stop_strings_nothing_is_held():
    matcher = StopStrings([])
    assert (matcher.push("abc"), matcher.flush(), matcher.found) == ("abc", "", False)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
