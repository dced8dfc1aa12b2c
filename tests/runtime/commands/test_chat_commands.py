"""A chat's commands in its own process: what they do to the messages, and the line that says what is wrong."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime.commands.chat_commands import COMMANDS
from tests.forks import RUNTIME, forks

MAIN = str(Path(__file__).parent.with_name("fake_main.py"))
USER, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "hello"}


@pytest.fixture
def bundle(make_bundle: Any, byte_level: Any, megrez_template: str) -> Path:
    found: Path = make_bundle(tokenizer=byte_level, template=megrez_template)
    return found


def chat(bundle: Path, *lines: str, options: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return forks(RUNTIME).run(MAIN, ["chat", bundle, *options], stdin="".join(f"{line}\n" for line in lines), env=env)


def saved_by(bundle: Path, file: Path, *lines: str, options: tuple[str, ...] = ()) -> list[dict[str, str]]:
    done = chat(bundle, *lines, f"/save {file}", options=options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one"], [USER, ANSWER]),
        ([], []),
        (["zero", "/reset", "one"], [USER, ANSWER]),
        (["zero", "/new", "one"], [USER, ANSWER]),
        (["one", "two", "/undo"], [USER, ANSWER]),
        (["one", "/retry"], [USER, ANSWER]),
        (["/system Be  brief.", "one"], [{"role": "system", "content": "Be  brief."}, USER, ANSWER]),
        (["/system a", "/reset", "one"], [{"role": "system", "content": "a"}, USER, ANSWER]),
        (["/system a", "/system", "one"], [USER, ANSWER]),
        (["//etc"], [{"role": "user", "content": "/etc"}, ANSWER]),
        (["你好"], [{"role": "user", "content": "你好"}, ANSWER]),
    ],
)
def test_the_messages_after(bundle: Path, tmp_path: Path, lines: list[str], expected: list[dict[str, str]]) -> None:
    assert saved_by(bundle, tmp_path / "chat.json", *lines) == expected


def test_a_saved_chat_is_loaded_whole_and_saved_over(bundle: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "chat.json", tmp_path / "other.json"
    first = saved_by(bundle, file, "one", options=("--system", "Be brief."))
    assert first == [{"role": "system", "content": "Be brief."}, USER, ANSWER]
    assert saved_by(bundle, other, "lost", f"/load {file}") == first
    assert saved_by(bundle, file, f"/load {file}", "one")[1:] == [USER, ANSWER] * 2
    assert sorted(path.name for path in tmp_path.glob("*json*")) == ["chat.json", "other.json"]


def test_a_retry_draws_otherwise_and_a_seed_repeats_all_of_it(bundle: Path, tmp_path: Path) -> None:
    def answers(seed: str) -> list[str]:
        options = ("--seed", seed, "--temperature", "30", "--max-tokens", "12")
        files = [tmp_path / f"{seed}-{at}.json" for at in range(3)]
        first, *retries = [f"/save {file}" for file in files]
        lines = ["one", first, *(line for save in retries for line in ("/retry", save))]
        assert chat(bundle, *lines, options=options).returncode == 0
        chats = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        assert all(found[0] == USER and len(found) == 2 for found in chats)
        return [found[1]["content"] for found in chats]

    first = answers("1")
    assert len(set(first)) == 3
    assert answers("1") == first
    assert answers("2")[:2] == first[1:]  # each retry takes the next seed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/rset", "unknown command /rset: did you mean /reset? /help lists the commands"),
        ("/etc/passwd is what?", "unknown command /etc/passwd: /help lists"),
        ("/", "unknown command /: "),
        ("/reset now", "/reset takes no argument, 'now' was given: leave it out"),
        ("/save", "/save needs FILE: give it on the same line"),
        ("/load", "/load needs FILE"),
        ("/load MISSING", "missing.json cannot be read (No such file or directory): choose another file"),
        ("/load FOLDER", "cannot be read (Is a directory)"),
        ("/load NOTES", "notes.txt is not JSON ("),
        ("/load OBJECT", 'object.json is not a list of {"role": …, "content": …}: choose a file that /save wrote'),
        ("/load ~nobody-of-that-name/x", "cannot be read"),
        ("/load a\0b", "is not JSON"),
        ("/save NOTES", "notes.txt exists and is not a saved chat: choose another file"),
        ("/save FOLDER", "exists and is not a saved chat"),
        ("/save NOTES/x", "cannot be written (Not a directory): choose another file"),
        ("/save a\0b", "cannot be written (embedded null byte)"),
        ("/retry", "there is no question yet: ask one first"),
        ("/undo", "there is no question yet"),
    ],
)
def test_a_command_that_fails_is_one_line_and_the_chat_goes_on(
    bundle: Path, tmp_path: Path, line: str, said: str
) -> None:
    notes, wrong = tmp_path / "notes.txt", tmp_path / "object.json"
    notes.write_text("mine")
    wrong.write_text('[{"role": "user"}]')
    names = {"MISSING": tmp_path / "missing.json", "FOLDER": tmp_path, "NOTES": notes, "OBJECT": wrong}
    for name, path in names.items():
        line = line.replace(name, str(path))
    done = chat(bundle, line, "one")
    assert done.returncode in (1, 2) and done.stdout == "hello\n"
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert notes.read_text() == "mine" and len(list(tmp_path.iterdir())) == 3  # with the bundle


def test_help_lists_every_command_and_stats_count(bundle: Path) -> None:
    done = chat(bundle, "/help", "/stats", "one", "/stats", CAPACITY="300")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert all(f"\n{name} " in f"\n{done.stderr}" for name in COMMANDS)
    assert "0 questions, 0 of 300 tokens" in done.stderr
    assert "1 question, " in done.stderr and "last answer: " in done.stderr


def test_exit_leaves_and_nothing_after_it_is_read(bundle: Path) -> None:
    done = chat(bundle, "one", "/exit", "two")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


class Terminal:
    """A chat on a terminal of 40 columns."""

    def __init__(self, bundle: Path, home: Path, **env: str) -> None:
        self.master, child = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, MAIN, "chat", str(bundle)],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env={**os.environ, "XDG_STATE_HOME": str(home), "COLUMNS": "40", "TERM": "dumb", **env},
        )
        os.close(child)
        self.shown = ""

    def wait_for(self, text: str) -> str:
        """What is shown up to `text`."""
        end = time.monotonic() + 60
        while text not in self.shown:
            ready = select.select([self.master], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{text!r} does not come after {self.shown!r}"
            self.shown += os.read(self.master, 4096).decode().replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def wait_until_it_sleeps(self) -> None:
        """Before a signal: between showing what was typed and waiting for more, readline misses one."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        end = time.monotonic() + 60
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end
            time.sleep(0.01)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def leave(self) -> int:
        self.type("\x04")
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code


@pytest.fixture
def terminal(bundle: Path, tmp_path: Path) -> Any:
    opened: list[Terminal] = []

    def start(**env: str) -> Terminal:
        opened.append(Terminal(bundle, tmp_path / "state", **env))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()


def test_at_a_terminal_answers_wrap_and_lines_are_kept(terminal: Any, tmp_path: Path) -> None:
    one = terminal(SAYS="a line of words that is longer than forty columns")
    one.wait_for("> ")
    one.type('"""first\n')
    one.wait_for("... ")
    one.type('second"""\n')
    one.wait_for("a line of words that is longer than\nforty columns\n")
    one.wait_for("> ")
    one.type(f"/save {tmp_path / 'chat.json'}\n")
    one.wait_for("saved to")
    one.wait_for("> ")
    assert one.leave() == 0
    asked, answer = json.loads((tmp_path / "chat.json").read_text())
    assert asked["content"] == "first\nsecond"
    assert answer["content"] == "a line of words that is longer than forty columns"
    kept = (tmp_path / "state" / "megrez" / "chat_history").read_text().splitlines()
    assert kept[-3:] == ['"""first', 'second"""', f"/save {tmp_path / 'chat.json'}"]


def test_at_a_terminal_ctrl_c_ends_an_answer_or_drops_a_line_and_the_chat_goes_on(terminal: Any) -> None:
    one = terminal(SAYS="x y " * 100, NAP="0.02")
    one.wait_for("> ")
    one.type("go\n")
    one.wait_for("x y x")
    one.process.send_signal(signal.SIGINT)
    assert "interrupted" in one.wait_for("> ")
    one.type("unfinished")
    one.wait_for("unfinished")
    one.wait_until_it_sleeps()
    one.process.send_signal(signal.SIGINT)
    one.wait_for("(Ctrl-D leaves)")
    one.wait_for("> ")
    one.type("/stats\n")
    one.wait_for("1 question, ")
    one.wait_for("> ")
    assert one.leave() == 0
