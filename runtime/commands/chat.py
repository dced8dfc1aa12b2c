"""`megrez chat`: a conversation on the terminal, or with a script on stdin."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from megrez.runtime.commands.options import (
    bundle_argument,
    chosen_sampling,
    max_tokens_option,
    sampling_options,
    stop_option,
    system_option,
    threads_option,
    verify_option,
)
from megrez.runtime.commands.run import summary
from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    from megrez.runtime.completion import Completion
    from megrez.runtime.model import Model
    from megrez.runtime.sampling import SamplingParams

_NEW = "/new"


@click.command("chat")
@bundle_argument
@max_tokens_option
@sampling_options
@stop_option
@system_option
@threads_option
@verify_option
def chat_command(
    bundle: str,
    max_tokens: int,
    stop: tuple[str, ...],
    system: str | None,
    threads: int | None,
    verify: bool,
) -> None:
    """Talk with the model, a line at a time. /new forgets the conversation, Ctrl-C stops an answer, Ctrl-D leaves."""
    from megrez.runtime.model import Model

    with Model.open(bundle, threads=threads, verify=verify) as model:
        if model.template is None:
            raise UsageError(f'the bundle {bundle} has no chat template: use  megrez run {bundle} "text to continue"')
        params = chosen_sampling(model.sampling)
        opening = [{"role": "system", "content": system}] if system is not None else []
        messages = list(opening)
        for line in _lines():
            if line == _NEW:
                messages = list(opening)
            elif line:
                messages = _turn(model, messages, line, params, max_tokens, stop)


def _turn(
    model: "Model",
    messages: list[dict[str, str]],
    line: str,
    params: "SamplingParams",
    max_tokens: int,
    stop: tuple[str, ...],
) -> list[dict[str, str]]:
    """Ask and print one answer; returns the conversation with it, or as it was where it no longer fits."""
    asked = [*messages, {"role": "user", "content": line}]
    prompt_ids = model.encode(asked)
    if len(prompt_ids) > model.session.capacity:
        _refuse(len(prompt_ids), model.session.capacity)
        return messages
    completion = _answer(model, prompt_ids, params, max_tokens, stop)
    if completion is None:
        return messages
    if completion.prompt_tokens + completion.output_tokens > model.session.capacity:
        click.echo(f"note: the conversation fills the context; {_NEW} starts another", err=True)
    return [*asked, {"role": "assistant", "content": completion.text}]


def _answer(
    model: "Model", prompt_ids: list[int], params: "SamplingParams", max_tokens: int, stop: tuple[str, ...]
) -> "Completion | None":
    """Print the answer as it comes; Ctrl-C ends it early, and before the first token it was never asked."""
    from megrez.runtime.completion import Completion

    pieces = []
    with contextlib.suppress(KeyboardInterrupt):
        for piece in model.stream_ids(prompt_ids, params, max_tokens=max_tokens, stop=stop, reuse_prefix=True):
            pieces.append(piece)
            click.echo(piece.text, nl=False)
    click.echo()
    if not pieces:
        return None
    completion = Completion.of(pieces, prompt_tokens=len(prompt_ids))
    if sys.stdin.isatty():
        click.echo(click.style(summary(completion), dim=True), err=True)
    return completion


def _refuse(tokens: int, capacity: int) -> None:
    message = (
        f"the conversation has grown to {tokens} tokens, the context holds {capacity}: "
        f"start another with {_NEW}, or ask something shorter"
    )
    if not sys.stdin.isatty():
        raise UsageError(message)
    click.echo(f"error: {message}", err=True)


def _lines() -> Iterator[str]:
    """Lines of stdin until its end; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, gives input() its line editing and history
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ").strip()
