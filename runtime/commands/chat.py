"""`megrez chat`: a conversation on the terminal, or with a script on stdin."""

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from megrez.runtime.errors import MegrezError, UsageError

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
    bundle: str, max_tokens: int, stop: tuple[str, ...], system: str | None, threads: int | None, verify: bool
) -> None:
    """Talk with the model, one line at a time.

    /new starts another conversation, Ctrl-C stops an answer, Ctrl-D leaves. A line that the chat template or the
    context refuses is reported and left out; with lines from a script, the exit code then is not 0.
    """
    from megrez.runtime.model import Model

    with Model.open(bundle, threads=threads, verify=verify) as model:
        if model.template is None:
            raise UsageError(f'the bundle {bundle} has no chat template: use  megrez run {bundle} "text to continue"')
        model.template.check()
        conversation = _Conversation(
            model=model, params=chosen_sampling(model.sampling), max_tokens=max_tokens, stop=stop, system=system
        )
        for line in _lines():
            if line == _NEW:
                conversation.turns.clear()
            elif line:
                conversation.ask(line)
    if conversation.exit_code and not sys.stdin.isatty():
        sys.exit(conversation.exit_code)


@dataclass(slots=True, kw_only=True)
class _Conversation:
    model: "Model"
    params: "SamplingParams"
    max_tokens: int
    stop: tuple[str, ...]
    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)
    exit_code: int = 0

    def ask(self, line: str) -> None:
        """Print the answer to `line` and add both to the conversation; a line that is refused or gets no answer is
        left out of it."""
        asked = [*self.turns, {"role": "user", "content": line}]
        try:
            prompt_ids = self._encode(asked)
        except MegrezError as error:
            click.echo(f"error: {' '.join(str(error).splitlines())} (the conversation goes on without it)", err=True)
            self.exit_code = error.exit_code
            return
        completion = self._answer(prompt_ids)
        if completion is not None:
            self.turns = [*asked, {"role": "assistant", "content": completion.text}]
            capacity = self.model.session.capacity
            if completion.prompt_tokens + completion.output_tokens > capacity:
                click.echo(f"note: the conversation fills the context of {capacity}; {_NEW} starts another", err=True)

    def _encode(self, turns: list[dict[str, str]]) -> list[int]:
        """Raises UsageError for messages that the chat template or the context's length refuses."""
        opening = [{"role": "system", "content": self.system}] if self.system is not None else []
        prompt_ids = self.model.encode([*opening, *turns])
        capacity = self.model.session.capacity
        if len(prompt_ids) > capacity:
            raise UsageError(
                f"the conversation has grown to {len(prompt_ids)} tokens, the context holds {capacity}: "
                f"start another with {_NEW}, or ask something shorter"
            )
        return prompt_ids

    def _answer(self, prompt_ids: list[int]) -> "Completion | None":
        """Print the answer as it comes; Ctrl-C ends it early, and before its first token leaves nothing."""
        from megrez.runtime.completion import Completion

        pieces = []
        with contextlib.suppress(KeyboardInterrupt):
            for piece in self.model.stream_ids(
                prompt_ids, self.params, max_tokens=self.max_tokens, stop=self.stop, reuse_prefix=True
            ):
                pieces.append(piece)
                click.echo(piece.text, nl=False)
        click.echo()
        if not pieces:
            return None
        completion = Completion.of(pieces, prompt_tokens=len(prompt_ids))
        if sys.stdin.isatty():
            click.echo(click.style(summary(completion), dim=True), err=True)
        return completion


def _lines() -> Iterator[str]:
    """Lines of stdin until its end; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are no UTF-8 then reach the tokenizer, which says what is wrong with them.
            sys.stdin.reconfigure(errors="surrogateescape")
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, gives input() its line editing and history
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ").strip()
    click.echo()
