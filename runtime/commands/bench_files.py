"""`megrez bench compare` and `megrez bench report`: what is made of results that --json-file wrote."""

from pathlib import Path

import click

from megrez.runtime.commands.options import json_file_option, json_option, show


@click.command("compare")
@click.argument("a", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.json", type=click.Path(path_type=Path))
@json_option
@json_file_option
def compare_command(a: Path, b: Path, as_json: bool, json_file: Path | None) -> None:
    """Compare two results that --json-file wrote: medians, ratios, and which is better beyond the spread."""
    from megrez.runtime.bench.compare import compare, comparison_json, comparison_table, differences, read_result

    first, second = read_result(a), read_result(b)
    rows, differing = compare(first, second, (a.name, b.name)), differences(first, second)
    show(comparison_table(rows, differing), comparison_json(rows, differing), as_json=as_json, json_file=json_file)


@click.command("report")
@click.argument("files", metavar="RESULT.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bench-report"),
    show_default=True,
    metavar="FOLDER",
    help="Write report.md and its pictures there.",
)
def report_command(files: tuple[Path, ...], output: Path) -> None:
    """Write a report in Markdown with pictures in PNG of one or more results that --json-file wrote."""
    from megrez.runtime.bench.compare import read_any_result
    from megrez.runtime.bench.report import write_report

    click.echo(write_report({path.stem: read_any_result(path) for path in files}, output))
