"""Options in `--help`: one metavar for whole numbers, and every default."""

import importlib
import re

import click
import pytest
from click.testing import CliRunner

from megrez.compile.cli import compile_command
from megrez.runtime.cli import VERBS
from megrez.runtime.commands.options import whole


def command_of(target: str) -> click.Command:
    module, name = target.split(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, click.Command)
    return found


COMMANDS = {"compile": compile_command} | {
    name: command_of(verb.target) for name, verb in VERBS.items() if name != "bench"
}


@pytest.mark.parametrize("name", COMMANDS)
def test_whole_numbers_are_shown_as_n(name: str) -> None:
    shown = CliRunner().invoke(COMMANDS[name], ["--help"], terminal_width=200).output
    assert "Usage" in shown and not re.search(r"INTEGER|RANGE|x>=|<=x", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_takes_a_value_states_its_default(name: str) -> None:
    without = {"target", "output", "scheme", "text", "reference", "json_file", "system", "uds", "stage"}
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and not option.is_flag and not option.multiple:
            assert option.name in without or option.show_default or "[default: " in (option.help or ""), option.name


def test_a_number_out_of_range_is_refused_with_its_range() -> None:
    @click.command()
    @click.option("--count", type=whole(1, 9))
    def command(count: int) -> None:
        click.echo(count + 1)

    assert CliRunner().invoke(command, ["--count", "9"]).output == "10\n"
    refused = CliRunner().invoke(command, ["--count", "10"])
    assert refused.exit_code == 2 and "10 is not in the range 1<=x<=9" in refused.output
