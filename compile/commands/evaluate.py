"""The verb `megrez eval`: a bundle's fidelity to its checkpoint in float32, on the user's text."""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.fidelity import measure_fidelity, measure_perplexity
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.commands.options import json_file_option, json_option, show, threads_option
from megrez.runtime.engines import open_session
from megrez.runtime.errors import MissingExtraError, UsageError
from megrez.runtime.manifest import FILE_NAME
from megrez.runtime.session import Session
from megrez.runtime.text import Text


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--text", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Measure on this UTF-8 text."
)
@click.option(
    "--reference",
    metavar="MODEL",
    help="Compare with this checkpoint in float32, or with its bundle.  [default: measure perplexity only]",
)
@click.option(
    "--tokens", type=int, metavar="N", default=8192, show_default=True, help="Measure on N tokens of the text."
)
@click.option(
    "--skip", type=int, metavar="N", default=0, show_default=True, help="Skip the first N tokens of the text."
)
@click.option(
    "--window", type=int, metavar="N", default=512, show_default=True, help="Clear the KV cache after every N tokens."
)
@threads_option
@json_option
@json_file_option
def eval_command(
    bundle: Path,
    text: Path,
    reference: str | None,
    tokens: int,
    skip: int,
    window: int,
    threads: int | None,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Measure the fidelity of BUNDLE to the model it was compiled from, or its perplexity alone.

    The reference is MODEL compiled for cpu-fp32 into a temporary folder, or an existing bundle.
    """
    opened = open_bundle(bundle)
    ids = read_tokens(opened, text, tokens, skip=skip)
    if not 2 <= window <= opened.manifest.context_length:
        raise UsageError(f"--window is {window}: the bundle's context takes 2 to {opened.manifest.context_length}")
    if reference is None:
        figures = _perplexity(opened, ids, threads, window)
    else:
        figures = _fidelity(opened, reference, ids, threads, window)
    table = "\n".join(f"{name:22}{value:.6g}" for name, value in figures.items())
    show(table, json.dumps(figures, indent=2), as_json=as_json, json_file=json_file)


def _perplexity(bundle: Bundle, ids: NDArray[np.int64], threads: int | None, window: int) -> dict[str, float]:
    with (
        _session(bundle, threads, window) as session,
        click.progressbar(length=len(ids), label="reading", file=sys.stderr) as bar,
    ):
        found = measure_perplexity(session, ids, window=window, progress=bar.update)
    return {"perplexity": found, "tokens": len(ids)}


def _fidelity(
    bundle: Bundle, reference: str, ids: NDArray[np.int64], threads: int | None, window: int
) -> dict[str, float]:
    with _reference_bundle(reference, window) as truth:
        check_same_model(bundle, truth)
        with (
            _session(bundle, threads, window) as session,
            _session(truth, threads, window) as reference_session,
            click.progressbar(length=len(ids), label="comparing", file=sys.stderr) as bar,
        ):
            found = measure_fidelity(session, reference_session, ids, window=window, progress=bar.update)
    return dataclasses.asdict(found)


def read_tokens(bundle: Bundle, path: Path, count: int, *, skip: int = 0) -> NDArray[np.int64]:
    """`count` tokens of a text after the first `skip`; raises UsageError where it cannot be read or is too short."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {path} cannot be read as UTF-8 text ({error}): give another file") from error
    ids = Text.open(bundle).encode(text, add_bos=False)
    if skip < 0 or (skip and len(ids) < skip + 2):
        raise UsageError(
            f"--skip is {skip} and {path} has {len(ids)} tokens: skip 0 to {max(0, len(ids) - 2)} or give a longer text"
        )
    left = len(ids) - skip
    if count < 2 or left < count:
        after = " after those skipped" if skip else ""
        raise UsageError(f"--tokens is {count} and {path} has {left}{after}: choose 2 to {left} or give a longer text")
    return np.array(ids[skip : skip + count], np.int64)


def check_same_model(bundle: Bundle, reference: Bundle) -> None:
    """Raise UsageError where the two models have different shapes."""
    if bundle.manifest.architecture != reference.manifest.architecture:
        raise UsageError(
            f"{bundle.path} and the reference {reference.manifest.provenance.source} differ in shape: "
            "give the checkpoint that the bundle was compiled from"
        )


@contextlib.contextmanager
def _reference_bundle(model: str, context: int) -> Iterator[Bundle]:
    if (Path(model) / FILE_NAME).is_file():
        yield open_bundle(model)
        return
    with tempfile.TemporaryDirectory(prefix="megrez-eval-") as folder:
        yield _compile_reference(model, Path(folder) / "reference", context)


def _compile_reference(model: str, output: Path, context: int) -> Bundle:
    """Imports what compiles only now: everything else here runs without it."""
    try:
        from megrez.compile.checkpoint import open_checkpoint
        from megrez.compile.commands.console_report import ConsoleReport
        from megrez.compile.pipeline import Request, compile_bundle
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("megrez."):
            raise
        raise MissingExtraError(
            needed_for="a reference that is no bundle", library=error.name, extra="export"
        ) from error
    from megrez.engines.targets import find_target

    request = Request(checkpoint=open_checkpoint(model), target=find_target("cpu-fp32"), output=output, context=context)
    with ConsoleReport() as report:
        return open_bundle(compile_bundle(request, report))


@contextlib.contextmanager
def _session(bundle: Bundle, threads: int | None, window: int) -> Iterator[Session]:
    # The smallest cache: the cost of the portable graph's attention grows with its capacity.
    session = open_session(bundle, threads=threads, capacity=window)
    try:
        yield session
    finally:
        session.close()
