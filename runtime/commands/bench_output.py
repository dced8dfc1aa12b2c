"""How a benchmark is shown: a line on a terminal, its table and JSON, warnings, and the error of a run that stopped."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from megrez.runtime.bench.drive import INTERRUPTED
from megrez.runtime.bench.live import Live, Ticker
from megrez.runtime.bench.table import table
from megrez.runtime.bench.warnings import warnings_of
from megrez.runtime.commands.options import show
from megrez.runtime.errors import MegrezError


@contextlib.contextmanager
def progress(total: int | None, what: str = "requests") -> Iterator[Live]:
    """On a terminal, a line that counts `what`, of `total` if that is known, and tokens per second."""
    live = Live()
    if sys.stderr is None or not sys.stderr.isatty():
        yield live
        return
    with contextlib.closing(Ticker(live, total, lambda text: click.echo(text, nl=False, err=True), what=what)):
        yield live


def report(found: dict[str, Any], *, as_json: bool, json_file: Path | None) -> None:
    """Show and write the result; a run that ended early is then an error."""
    found["warnings"] = warnings_of(found)
    show(table(found), json.dumps(found, indent=2, ensure_ascii=False), as_json=as_json, json_file=json_file)
    for warning in found["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if found["stopped"] is None:
        return
    kept = f"{found['stopped']}: the figures are of what was complete by then"
    if found["stopped"] == INTERRUPTED:
        click.echo(kept, err=True)
        raise click.Abort
    raise MegrezError(kept)
