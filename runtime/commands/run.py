"""`megrez run`: one prompt, one answer."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megrez.runtime.commands.options import (
    bundle_argument,
    chosen_sampling,
    draft_option,
    json_file_option,
    json_option,
    max_tokens_option,
    sampling_options,
    speculate_option,
    stop_option,
    system_option,
    threads_option,
    verify_option,
    write_json,
)
from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    from megrez.runtime.completion import Completion
    from megrez.runtime.model import Model
    from megrez.runtime.serving.drafting.choose import Speculate


@click.command("run")
@bundle_argument
@click.argument("prompt")
@max_tokens_option
@sampling_options
@stop_option
@system_option
@speculate_option
@draft_option
@threads_option
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@verify_option
@json_option
@json_file_option
def run_command(
    bundle: str,
    prompt: str,
    max_tokens: int,
    stop: tuple[str, ...],
    system: str | None,
    speculate: "Speculate",
    draft: str | None,
    threads: int | None,
    raw: bool,
    verify: bool,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Answer PROMPT, or continue it if the bundle has no chat template. "-" reads PROMPT from stdin.

    JSON output has the complete text, its token ids and timings.
    """
    from megrez.runtime.completion import Completion
    from megrez.runtime.model import Model

    text = _read_stdin() if prompt == "-" else prompt
    with Model.open(bundle, threads=threads, verify=verify, speculate=speculate, draft=draft) as model:
        prompt_ids = _prompt_ids(model, text, system=system, raw=raw)
        params = chosen_sampling(model.sampling)
        pieces = []
        for piece in model.stream_ids(prompt_ids, params, max_tokens=max_tokens, stop=stop):
            pieces.append(piece)
            if not as_json:
                click.echo(piece.text, nl=False)
    completion = Completion.of(pieces, prompt_tokens=len(prompt_ids))
    figures = json.dumps(dataclasses.asdict(completion), ensure_ascii=False)
    if json_file is not None:
        write_json(json_file, figures)
    if as_json:
        click.echo(figures)
    else:
        click.echo()
        click.echo(summary(completion), err=True)


def summary(completion: "Completion") -> str:
    """Token counts and speed of a generation, on one line."""
    speed = completion.decode_tokens_per_s
    decode = f", then {speed:.1f} tokens/s" if speed else ""
    drafted, accepted = completion.drafted_tokens, completion.accepted_tokens
    drafts = f", {accepted} of {drafted} drafted ones accepted" if drafted else ""
    return (
        f"{completion.prompt_tokens} prompt tokens, {completion.output_tokens} output tokens{drafts}: "
        f"first after {completion.ttft_s:.2f} s{decode} ({completion.finish_reason or 'interrupted'})"
    )


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("the prompt cannot be read, stdin is closed: give it as an argument")
    try:
        # The final newline comes from `echo` and is not part of the prompt.
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8 ({error}): convert it first") from error


def _prompt_ids(model: "Model", text: str, *, system: str | None, raw: bool) -> list[int]:
    if raw or model.template is None:
        if system is not None:
            reason = "has no effect with --raw" if raw else "needs a chat template, which this bundle lacks"
            raise UsageError(f"--system {reason}: write the instruction into the prompt")
        if not raw:
            click.echo("note: the bundle has no chat template, so the prompt is continued as plain text", err=True)
        return model.encode(text)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.encode([*messages, {"role": "user", "content": text}])
