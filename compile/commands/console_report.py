"""A build's stages and progress bars on stderr; knows no stage."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click


class ConsoleReport:
    """See megrez.compile.report.Report. As a context manager it restores the terminal, also after an error."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._bar: Any = None

    def __enter__(self) -> "ConsoleReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def stage(self, name: str) -> None:
        self._end_bar()
        click.echo(f"[{time.perf_counter() - self.started:6.1f} s] {name}", err=True)

    def text(self, lines: str) -> None:
        click.echo(lines, err=True)

    def weights(self, total: int) -> Callable[[int], None]:
        bar = self._begin_bar("weights", total, show_pos=False)
        return lambda done: bar.update(done)

    def layers(self, total: int) -> Callable[[int], None]:
        bar = self._begin_bar("layers", total, show_pos=True)
        return lambda done: bar.update(done - bar.pos)

    def phase(self, name: str, done: int, total: int) -> None:
        if done == 0 or self._bar is None:
            self._begin_bar(name.lower(), total, show_pos=True)
        self._bar.update(done - self._bar.pos)

    def _begin_bar(self, label: str, total: int, *, show_pos: bool) -> Any:
        self._end_bar()
        self._bar = click.progressbar(
            length=total, label=f"{' ' * 11}{label}", file=sys.stderr, show_eta=True, show_pos=show_pos
        )
        return self._bar

    def _end_bar(self) -> None:
        """End the line, and show the cursor that a bar hides."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
