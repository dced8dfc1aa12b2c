"""Wrapped text is the text with line breaks, never within a word or a code block, however it is cut into pieces."""

import itertools
import random
import textwrap

import pytest

from megrez.runtime.commands.wrapping import Wrapper, columns_of


def wrapped(text: str, width: int, cuts: list[int] | None = None) -> str:
    wrapper = Wrapper(width)
    edges = [0, *sorted(cuts or []), len(text)]
    pieces = [wrapper.push(text[start:stop]) for start, stop in itertools.pairwise(edges)]
    return "".join(pieces) + wrapper.flush()


def test_english_wraps_as_pythons_textwrap() -> None:
    words = random.Random(0)
    text = " ".join("x" * words.randint(1, 9) for _ in range(400))
    for width in (9, 10, 17, 80):
        assert wrapped(text, width) == textwrap.fill(text, width, break_on_hyphens=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc def", "abc def"),
        ("abcd efgh ij", "abcd efgh\nij"),
        ("abcd efghi j", "abcd efghi\nj"),
        ("one  two   three", "one  two\nthree"),
        ("  - indented more", "  -\nindented\nmore"),
        ("a\n\nb c\n", "a\n\nb c\n"),
        ("a b ", "a b "),
        ("see https://example.org/a/long/address now", "see\nhttps://example.org/a/long/address now"),
        ("a\tbc d", "a\tbc\nd"),
    ],
)
def test_lines_of_ten_columns(text: str, expected: str) -> None:
    assert wrapped(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一二三四五六七", "一二三四五\n六七"),
        ("a一二三四五", "a一二三四\n五"),
        ("一二三四五。六", "一二三四\n五。六"),  # no line begins with closing punctuation
        ("一二三四「五」", "一二三四\n「五」"),  # none ends with opening punctuation
        ("一二三 abcd 四", "一二三\nabcd 四"),
        ("e\u0301e\u0301e\u0301e\u0301e\u0301 一二三", "e\u0301e\u0301e\u0301e\u0301e\u0301 一二\n三"),
    ],
)
def test_wide_characters_count_two_columns_and_lines_break_between_them(text: str, expected: str) -> None:
    assert wrapped(text, 10) == expected
    # A line of one word may be wider, as where punctuation stays with its word.
    assert all(columns_of(line) <= 10 for line in expected.split("\n"))


def test_an_address_leaves_the_column_where_the_terminal_leaves_it() -> None:
    # 12 characters fill a line of ten and two columns of the next: seven more fit behind a space.
    assert wrapped("x" * 12 + " 1234567 8", 10) == "x" * 12 + " 1234567\n8"
    assert wrapped("x" * 12 + " 12345678", 10) == "x" * 12 + "\n12345678"


CODE = "Some words:\n```python\nprint('much longer than a line', 1, 2)\n    x = 1\n```\nand some more words"


def test_code_blocks_are_left_alone_and_text_behind_them_is_not() -> None:
    assert wrapped(CODE, 10) == CODE.replace("Some words:", "Some\nwords:").replace(
        "and some more words", "and some\nmore words"
    )


def test_a_block_ends_at_its_own_fence_alone() -> None:
    nested = "~~~\n```\nlong line of code here\n~~~\nwords that wrap"
    assert wrapped(nested, 10) == nested.replace("words that wrap", "words that\nwrap")
    inline = "```x``` is code\nwords that wrap"
    assert wrapped(inline, 10) == "```x``` is\ncode\nwords that\nwrap"


@pytest.mark.parametrize("text", [CODE, "一二三四五。六 and words, some「五」long " * 5, "a  b\t c\n\n  d " * 9])
def test_how_the_text_is_cut_does_not_matter(text: str) -> None:
    whole, cutter = wrapped(text, 13), random.Random(1)
    for _ in range(40):
        assert wrapped(text, 13, cutter.sample(range(len(text)), 12)) == whole
    assert "".join(whole.split()) == "".join(text.split())


def test_words_are_shown_as_soon_as_they_are_complete() -> None:
    wrapper = Wrapper(10)
    assert [wrapper.push(piece) for piece in ("ab", "cd", " ", "e")] == ["", "", "abcd", ""]
    assert wrapper.flush() == " e"
