"""Every table in docs/benchmarks names the JSON that its figures are from, or says that none was kept."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
PAGES = sorted(FOLDER.glob("*.md"))
NONE = "*No JSON was kept.*"
# From what JSON has to what tables show: per cent, milli-, micro- and the reverse, mega- and gigabytes, MiB.
SCALES = (1, 100, 1e3, 1e6, 1e-3, 1e-6, 1e-9, 1 / 2**20)


def tables(page: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """The line above each table, and the cells of its rows without the header."""
    blocks = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    for before, block in zip(["", *blocks], blocks, strict=False):
        lines = block.split("\n")
        if lines[0].startswith("|"):
            yield before.strip(), [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def plain(text: str) -> str:
    return re.sub(r"[*`]|\(?\[details\]\([^)]*\)\)?", "", text).strip()


def shown(cell: str) -> list[str]:
    """Numbers of a cell that stand alone: not those of names such as cpu-int4."""
    return re.findall(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?![\w-])", plain(cell))


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, dict | list):
        for one in found.values() if isinstance(found, dict) else found:
            yield from numbers(one)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield float(found)


def is_in(text: str, values: list[float]) -> bool:
    """Whether a value, scaled and rounded as the text is, is the text."""
    digits = len(text.partition(".")[2])
    wanted = float(text.replace(",", ""))
    half = 0.5 * 10**-digits * 1.001
    return any(abs(value * scale - wanted) <= half for value in values for scale in SCALES)


def of_row(name: str, files: list[Any]) -> list[float]:
    """Numbers of the result that has the row's name, where the JSON has named results; of the whole files otherwise."""
    results = [one for found in files for one in found.get("results", ()) if isinstance(one, dict) and "name" in one]
    if not results:
        return [value for found in files for value in numbers(found)]
    return [value for one in results if one["name"] == name for value in numbers(one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_names_its_json_or_says_that_there_is_none(page):
    unmarked = [rows[0] for mark, rows in tables(page) if mark != NONE and not re.fullmatch(r"\*From \[.*\.\*", mark)]
    assert unmarked == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_figures_of_a_table_are_those_of_its_json(page):
    wrong = []
    for mark, rows in tables(page):
        if mark == NONE:
            continue
        files = [json.loads((FOLDER / name).read_text()) for name in re.findall(r"\]\(([^)]+)\)", mark)]
        assert files
        for name, *cells in rows:
            values = of_row(plain(name), files)
            wrong += [(plain(name), text) for cell in cells for text in shown(cell) if not is_in(text, values)]
    assert wrong == []


def test_a_figure_that_no_json_has_is_found():
    assert (
        is_in("71", [0.7149]) and is_in("489", [489232640.0]) and is_in("28.6", [28.63]) and is_in("1,037", [0.0010371])
    )
    assert not is_in("28.7", [28.63]) and not is_in("72", [0.7149])
    assert shown("1.83 (1.13 to 1.36)") == ["1.83", "1.13", "1.36"] and shown("cpu-int4, lm_head Q6_K") == []
    named = [{"results": [{"name": "a", "x": 1.5}, {"name": "b", "x": 2.5}]}]
    assert of_row("a", named) == [1.5] and of_row("c", named) == []
