"""Pages that are written from the code, and what the documentation names."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_targets_is_what_make_docs_writes():
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert (ROOT / "docs" / "targets.md").read_text(encoding="utf-8") == written["TEXT"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_ours_that_are_named_exist(page):
    named = re.findall(
        r"`((?:runtime|engines|calibration|compile|tests|benchmarks|docs|examples)/[\w./-]*\w)`", page.read_text()
    )
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_file_tree_of_the_readme_has_every_folder():
    tree = re.search(r"^runtime/ .*?^tests/", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert tree is not None
    folders: list[str] = []
    parents: list[str] = []
    for spaces, name in re.findall(r"^( *)(\w+)/", tree[0], re.MULTILINE):
        parents = [*parents[: len(spaces) // 2], name]
        folders.append("/".join(parents))
    there = {
        path.parent.relative_to(ROOT).as_posix()
        for name in ("runtime", "engines", "calibration", "compile")
        for path in (ROOT / name).rglob("*.py")
    }
    assert there <= set(folders)
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
