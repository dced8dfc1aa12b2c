"""The commands inside a chat, such as /retry: one table, from which /help is printed."""

import contextlib
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from megrez.runtime.commands.conversation import Conversation, Turns
from megrez.runtime.commands.run import summary
from megrez.runtime.errors import MegrezError, UsageError


class LeaveChat(Exception):
    """The user asked to end the chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCommand:
    """run: gets the conversation and the text after the name. argument: its name in /help; None if it takes none."""

    help: str
    run: Callable[[Conversation, str], None]
    argument: str | None = None
    required: bool = True


def run_command(conversation: Conversation, line: str) -> None:
    """Run a line that begins with "/"; an error is reported, and the chat continues."""
    name, _, argument = line.partition(" ")
    try:
        _find(name, argument.strip()).run(conversation, argument.strip())
    except MegrezError as error:
        conversation.report(error)


def _find(name: str, argument: str) -> ChatCommand:
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"unknown command {name}: {hint}/help lists the commands, and // at the start sends a message with a slash"
        )
    if argument and command.argument is None:
        raise UsageError(f"{name} takes no argument, {argument!r} was given: leave it out")
    if command.argument and command.required and not argument:
        raise UsageError(f"{name} needs {command.argument}: give it on the same line")
    return command


def _help(conversation: Conversation, argument: str) -> None:
    usages = {f"{name} {command.argument or ''}".strip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, usages))
    lines = [f"{usage:<{width}}  {text}" for usage, text in usages.items()]
    click.echo("\n".join([*lines, *_KEYS]), err=True)


def _reset(conversation: Conversation, argument: str) -> None:
    conversation.clear()
    conversation.note("a new conversation")


def _system(conversation: Conversation, argument: str) -> None:
    conversation.system = argument or None
    conversation.note("the system message is set" if argument else "the system message is removed")


def _retry(conversation: Conversation, argument: str) -> None:
    conversation.retry()


def _undo(conversation: Conversation, argument: str) -> None:
    conversation.undo()
    conversation.note(f"removed; {_questions(conversation)} left")


def _save(conversation: Conversation, argument: str) -> None:
    path = _path(argument)
    if path.exists():
        try:
            _read_messages(path)
        except MegrezError as error:
            raise UsageError(f"{path} exists and is not a saved chat: choose another file") from error
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(conversation.messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink()
        raise MegrezError(f"{path} cannot be written ({_reason(error)}): choose another file") from error
    conversation.note(f"saved to {path}")


def _load(conversation: Conversation, argument: str) -> None:
    messages = _read_messages(_path(argument))
    leading = messages[:1] if messages and messages[0]["role"] == "system" else []
    conversation.clear()
    conversation.system = leading[0]["content"] if leading else None
    conversation.turns = messages[len(leading) :]
    conversation.note(f"loaded {_questions(conversation)}")


def _stats(conversation: Conversation, argument: str) -> None:
    tokens, capacity = conversation.tokens(), conversation.model.session.capacity
    click.echo(f"{_questions(conversation)}, {tokens} of {capacity} tokens of the context", err=True)
    if conversation.last is not None:
        click.echo(f"last answer: {summary(conversation.last)}", err=True)


def _exit(conversation: Conversation, argument: str) -> None:
    raise LeaveChat


def _questions(conversation: Conversation) -> str:
    count = sum(turn["role"] == "user" for turn in conversation.turns)
    return f"{count} question{'' if count == 1 else 's'}"


def _path(argument: str) -> Path:
    with contextlib.suppress(RuntimeError):  # the home folder is not known
        return Path(argument).expanduser()
    return Path(argument)


def _read_messages(path: Path) -> Turns:
    """Messages from JSON; raises UsageError for any other file."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({_reason(error)}): choose another file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}): choose a file that /save wrote") from error
    if not isinstance(data, list) or not all(map(_is_message, data)):
        raise UsageError(f'{path} is not a list of {{"role": …, "content": …}}: choose a file that /save wrote')
    return [{"role": message["role"], "content": message["content"]} for message in data]


def _is_message(data: object) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(key), str) for key in ("role", "content"))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


COMMANDS = {
    "/help": ChatCommand(help="show this list", run=_help),
    "/reset": ChatCommand(help="start a new conversation with the same system message", run=_reset),
    "/new": ChatCommand(help="the same", run=_reset),
    "/system": ChatCommand(
        help="set the system message; without TEXT, remove it", run=_system, argument="TEXT", required=False
    ),
    "/retry": ChatCommand(help="answer the last question again, with other random numbers", run=_retry),
    "/undo": ChatCommand(help="remove the last question and its answer", run=_undo),
    "/save": ChatCommand(help="write the conversation to FILE, as JSON messages", run=_save, argument="FILE"),
    "/load": ChatCommand(help="continue the conversation of FILE", run=_load, argument="FILE"),
    "/stats": ChatCommand(help="show the length of the conversation and the speed of the last answer", run=_stats),
    "/exit": ChatCommand(help="leave, as Ctrl-D does", run=_exit),
}
_KEYS = (
    "//text sends /text. At a terminal, a message of several lines begins and ends with three",
    'double quotes ("""), or its lines end in a backslash. Ctrl-C stops an answer.',
)
