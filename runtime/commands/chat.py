"""`megrez chat`: a conversation at the terminal, or with a script on stdin."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from megrez.runtime.commands.chat_commands import LeaveChat, run_command
from megrez.runtime.commands.conversation import Conversation
from megrez.runtime.commands.options import (
    bundle_argument,
    chosen_sampling,
    draft_option,
    max_tokens_option,
    sampling_options,
    speculate_option,
    stop_option,
    system_option,
    threads_option,
    verify_option,
)
from megrez.runtime.commands.terminal import Entry, history_path, line_history, read_entries
from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    from megrez.runtime.serving.drafting.choose import Speculate


@click.command("chat")
@bundle_argument
@max_tokens_option
@sampling_options
@stop_option
@system_option
@speculate_option
@draft_option
@threads_option
@verify_option
def chat_command(
    bundle: str,
    max_tokens: int,
    stop: tuple[str, ...],
    system: str | None,
    speculate: "Speculate",
    draft: str | None,
    threads: int | None,
    verify: bool,
) -> None:
    """Talk with the model. /help in the chat lists its commands: /reset, /system, /retry, /undo, /save, /load, …

    Ctrl-C stops an answer, Ctrl-D leaves. In a script, each line of stdin is a message or a command. A message that
    the chat template rejects or that does not fit the context, and a command that fails, are reported and skipped; a
    script's exit code then is not 0.
    """
    from megrez.runtime.model import Model

    with Model.open(bundle, threads=threads, verify=verify, speculate=speculate, draft=draft) as model:
        if model.template is None:
            raise UsageError(f'the bundle {bundle} has no chat template: use  megrez run {bundle} "text to continue"')
        model.template.check()
        conversation = Conversation(
            model=model,
            params=chosen_sampling(model.sampling),
            max_tokens=max_tokens,
            stop=stop,
            system=system,
            interactive=sys.stdin.isatty(),
        )
        with line_history(history_path(os.environ)) if conversation.interactive else contextlib.nullcontext():
            _talk(conversation)
    if conversation.exit_code and not conversation.interactive:
        sys.exit(conversation.exit_code)


def _talk(conversation: Conversation) -> None:
    for entry in read_entries():
        try:
            _handle(conversation, entry)
        except LeaveChat:
            return
        except KeyboardInterrupt:
            if not conversation.interactive:
                raise
            click.echo()


def _handle(conversation: Conversation, entry: Entry) -> None:
    if entry.text.startswith("/") and not entry.text.startswith("//") and not entry.literal:
        run_command(conversation, entry.text)
    elif entry.text:
        conversation.ask(entry.text if entry.literal else entry.text.removeprefix("/"))
