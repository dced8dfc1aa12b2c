"""A build's stages and progress bars on stderr; knows no stage."""

import sys
import time
from collections.abc import Callable

import click


class ConsoleReport:
    """See megrez.compile.pipeline.Report."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def stage(self, name: str) -> None:
        click.echo(f"[{time.perf_counter() - self.started:6.1f} s] {name}", err=True)

    def weights(self, total: int) -> Callable[[int], None]:
        bar = click.progressbar(length=total, label="           weights", file=sys.stderr, show_eta=True)
        return bar.update

    def layers(self, total: int) -> Callable[[int], None]:
        bar = click.progressbar(length=total, label="           layers", file=sys.stderr, show_eta=True, show_pos=True)
        return lambda done: bar.update(done - bar.pos)
