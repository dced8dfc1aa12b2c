"""Groups of options: their decorator, and a command whose `--help` lists them under titles; knows no option."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several click options, in the order of `--help`."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def sectioned(sections: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """The class of a click command whose options are listed by group: titles with their options' long names.

    Options in no group, such as --help, come last, under "Other".
    """

    class Sectioned(click.Command):
        def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
            left = {option.opts[-1]: option for option in self.get_params(context) if isinstance(option, click.Option)}
            for title, names in sections.items():
                _write(context, formatter, title, [left.pop(name) for name in names])
            _write(context, formatter, "Other", list(left.values()))

    return Sectioned


def _write(context: click.Context, formatter: click.HelpFormatter, title: str, options: list[click.Option]) -> None:
    records = [record for option in options if (record := option.get_help_record(context)) is not None]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)
