"""The `megrez` command, for those of its verbs that compile."""

import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def megrez(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], traced_once: None, brief_text: None
) -> Callable[..., tuple[Any, str, str]]:
    """The `megrez` command: exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        from megrez.runtime.cli import main

        monkeypatch.setattr(sys, "argv", ["megrez", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        return caught.value.code, told.out, told.err

    return run
