"""The conversation of `megrez chat`: its messages, and the answers that it prints; independent of its commands."""

import contextlib
import dataclasses
import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from megrez.runtime.commands.run import summary
from megrez.runtime.commands.wrapping import Wrapper
from megrez.runtime.errors import MegrezError, UsageError

if TYPE_CHECKING:
    from megrez.runtime.completion import Completion
    from megrez.runtime.model import Model
    from megrez.runtime.sampling import SamplingParams

# Narrower terminals wrap by themselves.
LEAST_WIDTH = 20

Turns = list[dict[str, str]]


@dataclass(slots=True, kw_only=True)
class Conversation:
    """turns: messages of the user and the assistant. Answers go to stdout, everything else to stderr.

    exit_code: of the last error, 0 if there was none. retries: of the last question, each of which gets another seed.
    """

    model: "Model"
    params: "SamplingParams"
    max_tokens: int
    stop: tuple[str, ...]
    system: str | None
    interactive: bool
    turns: Turns = field(default_factory=list)
    exit_code: int = 0
    retries: int = 0
    last: "Completion | None" = None

    def ask(self, question: str) -> None:
        """Print the answer and add both to the turns; a question that is rejected or gets no answer is left out."""
        self.retries = 0
        self._ask(self.turns, question)

    def retry(self) -> None:
        """Ask the last question again; the previous answer is kept if there is no new one."""
        at = self._last_question()
        self.retries += 1
        if self.params.temperature == 0:
            self.note("the temperature is 0, which gives the same answer again: start the chat with --temperature")
        self._ask(self.turns[:at], self.turns[at]["content"])

    def undo(self) -> None:
        """Remove the last question and its answer."""
        self.turns = self.turns[: self._last_question()]

    def clear(self) -> None:
        self.turns = []
        self.last = None

    @property
    def messages(self) -> Turns:
        """The turns, after the system message if there is one."""
        return [*self._opening(), *self.turns]

    def tokens(self) -> int:
        """The length of the conversation in tokens."""
        return len(self.model.encode(self.messages)) if self.turns else 0

    def report(self, error: MegrezError, consequence: str = "") -> None:
        click.echo(f"error: {' '.join(str(error).splitlines())}{consequence}", err=True)
        self.exit_code = error.exit_code

    def note(self, text: str) -> None:
        """Tell a user at a terminal; a script gets nothing."""
        if self.interactive:
            click.echo(click.style(text, dim=True), err=True)

    def _opening(self) -> Turns:
        return [{"role": "system", "content": self.system}] if self.system is not None else []

    def _last_question(self) -> int:
        asked = [at for at, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not asked:
            raise UsageError("there is no question yet: ask one first")
        return asked[-1]

    def _ask(self, earlier: Turns, question: str) -> None:
        asked = [*earlier, {"role": "user", "content": question}]
        try:
            prompt_ids = self._encode(asked)
        except MegrezError as error:
            self.report(error, " (the conversation goes on without it)")
            return
        completion = self._answer(prompt_ids)
        if completion is not None:
            self.turns, self.last = [*asked, {"role": "assistant", "content": completion.text}], completion
            capacity = self.model.session.capacity
            if completion.prompt_tokens + completion.output_tokens > capacity:
                click.echo(f"note: the conversation fills the context of {capacity}; /reset starts another", err=True)

    def _encode(self, turns: Turns) -> list[int]:
        """Raises UsageError for messages that the chat template rejects or that do not fit the context."""
        prompt_ids = self.model.encode([*self._opening(), *turns])
        capacity = self.model.session.capacity
        if len(prompt_ids) > capacity:
            raise UsageError(
                f"the conversation has {len(prompt_ids)} tokens, the context holds {capacity}: "
                "start another with /reset, or shorten the question"
            )
        return prompt_ids

    def _answer(self, prompt_ids: list[int]) -> "Completion | None":
        """Print the answer while it is generated. Ctrl-C ends it; None if no token was generated."""
        from megrez.runtime.completion import Completion

        wrapper = _wrapper()
        pieces = []
        with contextlib.suppress(KeyboardInterrupt):
            for piece in self.model.stream_ids(
                prompt_ids, self._seeded(), max_tokens=self.max_tokens, stop=self.stop, reuse_prefix=True
            ):
                pieces.append(piece)
                click.echo(wrapper.push(piece.text) if wrapper else piece.text, nl=False)
        click.echo(wrapper.flush() if wrapper else "")
        if not pieces:
            return None
        completion = Completion.of(pieces, prompt_tokens=len(prompt_ids))
        self.note(summary(completion))
        return completion

    def _seeded(self) -> "SamplingParams":
        seed = self.params.seed
        return self.params if seed is None else dataclasses.replace(self.params, seed=seed + self.retries)


def _wrapper() -> Wrapper | None:
    """For a terminal; None for a file or a pipe, which get the text unchanged."""
    columns = shutil.get_terminal_size().columns
    return Wrapper(columns) if sys.stdout.isatty() and columns >= LEAST_WIDTH else None
