import subprocess
import sys
import types

import click
import pytest

from megrez.runtime.console import Verb, VerbGroup, run_cli
from megrez.runtime.errors import EngineError, UsageError


def exit_code(monkeypatch, command: click.Command, *args: str) -> object:
    monkeypatch.setattr(sys, "argv", ["tool", *args])
    with pytest.raises(SystemExit) as left:
        run_cli(command)
    return left.value.code


def command_that(action) -> click.Command:
    return click.Command("tool", callback=action)


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("wrong"), 2, "error: wrong\n"),
        (EngineError("two\nlines"), 1, "error: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file", "x.gguf"), 1, "error: x.gguf: No such file: fix this and try again\n"),
        (OSError("read only"), 1, "error: read only: fix this and try again\n"),
        (MemoryError(), 1, "error: the machine has too little memory: free some or ask for less\n"),
        (BrokenPipeError(32, "gone"), 1, ""),
    ],
)
def test_each_error_has_its_exit_code_and_at_most_one_line(monkeypatch, capfd, error, code, said):
    assert exit_code(monkeypatch, command_that(raising(error))) == code
    assert capfd.readouterr().err.strip("\n") == said.strip("\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(ZeroDivisionError):
        run_cli(command_that(lambda: 1 / 0))


def test_a_commands_return_value_is_no_exit_code(monkeypatch):
    assert exit_code(monkeypatch, command_that(lambda: "text")) == 0


def group_of(monkeypatch, body: str, extra: str | None) -> VerbGroup:
    module = types.ModuleType("verbs_of_test_console")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(body, module.__dict__)
    return VerbGroup("tool", {"go": Verb(target=f"{module.__name__}:go", help="Goes.", extra=extra)}, help="A tool.")


def test_a_verb_runs(monkeypatch, capsys):
    body = "import click\ngo = click.Command('go', callback=lambda: click.echo('gone'))"
    assert exit_code(monkeypatch, group_of(monkeypatch, body, None), "go") == 0
    assert capsys.readouterr().out == "gone\n"


def test_a_verb_whose_library_is_missing_names_the_extra(monkeypatch, capsys):
    verb = Verb(target="no_such_library.verbs:go", help="Goes.", extra="export")
    assert exit_code(monkeypatch, VerbGroup("tool", {"go": verb}, help=""), "go") == 1
    assert "tool go needs no_such_library" in (said := capsys.readouterr().err)
    assert "pip install 'megrez-compile[export]'" in said


def test_a_missing_module_of_ours_is_a_bug_and_not_an_extra(monkeypatch):
    verb = Verb(target="megrez.runtime.no_such_module:go", help="Goes.", extra="export")
    monkeypatch.setattr(sys, "argv", ["tool", "go"])
    with pytest.raises(ModuleNotFoundError):
        run_cli(VerbGroup("tool", {"go": verb}, help=""))


def test_a_verb_whose_package_a_folder_leaves_out_says_so(monkeypatch, capsys):
    verb = Verb(target="megrez.compile:go", help="Goes.")
    monkeypatch.setitem(sys.modules, "megrez.compile", None)
    assert exit_code(monkeypatch, VerbGroup("tool", {"go": verb}, help=""), "go") == 1
    assert "error: tool go needs megrez.compile, which this folder leaves out" in capsys.readouterr().err


def test_help_lists_the_table_without_importing_it(monkeypatch, capsys):
    verb = Verb(target="no_such_library:go", help="Goes places.")
    assert exit_code(monkeypatch, VerbGroup("tool", {"go": verb}, help="A tool."), "--help") == 0
    assert "Goes places." in capsys.readouterr().out


LEAVES = """
import click, os, signal, sys
from megrez.runtime.console import run_cli

def action():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("cleaned up", flush=True)

run_cli(click.Command("tool", callback=action), [])
"""


def test_a_process_that_is_asked_to_end_cleans_up():
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleaned up\n", "")


def test_a_closed_standard_output_is_said():
    code = "import click; from megrez.runtime.console import run_cli; run_cli(click.Command('tool'), [])"
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output is closed: keep it open or redirect it to a file\n",
    )


def test_a_full_standard_output_is_said():
    code = "import click; from megrez.runtime.console import run_cli; "
    code += "run_cli(click.Command('tool', callback=lambda: click.echo('text')), [])"
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" >/dev/full', sys.executable, code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device: fix this and try again\n")
