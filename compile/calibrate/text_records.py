"""Tokenises text files and the default text, Python's documentation; knows no calibration."""

import io
import itertools
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.text import Text

# Characters tokenised at a time: a long file is only read as far as it is needed.
PIECE = 1 << 18

Ids = NDArray[np.int64]


class Tokenizer:
    """Records to token ids, without an added BOS: a chat template writes its own."""

    def __init__(self, assets: TextAssets) -> None:
        import tokenizers

        self.text = Text(tokenizers.Tokenizer.from_buffer(assets.tokenizer_json), assets.tokens)
        names = {
            "bos_token": assets.bos_token,
            "eos_token": assets.eos_token,
            "pad_token": self.text.token_text(assets.tokens.pad),
        }
        variables = {name: token for name, token in names.items() if token}
        self._template = None if assets.chat_template is None else ChatTemplate(assets.chat_template, variables)

    def encode(self, record: Any) -> Ids:
        """Token ids of a string, {"text": …} or {"messages": […]}; other keys are ignored. Else UsageError."""
        given = record if isinstance(record, dict) else {"text": record}
        match given.get("text"), given.get("messages"):
            case str(text), None:
                return np.array(self.text.encode(text, add_bos=False), np.int64)
            case None, list(messages):
                return np.array(self.text.encode(self._render(messages), add_bos=False), np.int64)
        raise UsageError('it has no known format: write a string, {"text": "…"} or {"messages": [{"role": …}, …]}')

    def _render(self, messages: list[Any]) -> str:
        if self._template is None:
            raise UsageError("it holds messages and the model has no chat template: write them as text")
        return self._template.render(messages, add_generation_prompt=False)


def read_file(path: Path, tokenizer: Tokenizer) -> Iterator[Ids]:
    """Tokens of a UTF-8 text, or of a .jsonl file's records, piece by piece, with nothing between records.

    A text is split at the first line end after each PIECE, where tokens may differ from those of the whole text.
    Raises UsageError when it cannot be read, is empty, or has a malformed record.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            pieces = _records(file, path, tokenizer) if path.suffix.lower() == ".jsonl" else _pieces(file, tokenizer)
            found = False
            for ids in pieces:
                found = found or bool(ids.size)
                yield ids
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise UsageError(f"{path} cannot be read as UTF-8 text ({reason}): give another file") from error
    if not found:
        raise UsageError(f"{path} holds no text: give another file")


def read_default(tokenizer: Tokenizer) -> Iterator[Ids]:
    """Tokens of pydoc_data.topics, the language reference that Python's help() shows.

    English prose and code of 450,000 characters, in every CPython; sorted by topic, with blank lines between. It
    differs a little between versions of Python.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageError("this Python comes without pydoc_data, the default text: name a text file") from error
    return _pieces(io.StringIO("\n\n".join(topics[name] for name in sorted(topics))), tokenizer)


def default_name() -> str:
    return f"pydoc_data.topics of Python {platform.python_version()}"


def _pieces(file: TextIO, tokenizer: Tokenizer) -> Iterator[Ids]:
    while piece := file.read(PIECE):
        piece += file.readline(PIECE)
        if "\0" in piece:
            raise UsageError(f"{getattr(file, 'name', 'the text')} is a binary file: give a UTF-8 text")
        yield tokenizer.encode(piece)


def _records(file: TextIO, path: Path, tokenizer: Tokenizer) -> Iterator[Ids]:
    for number, line in zip(itertools.count(1), file, strict=False):
        if not line.strip():
            continue
        try:
            yield tokenizer.encode(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} of {path} is not JSON ({error}): write one record per line") from error
        except (UsageError, BundleError) as error:
            raise type(error)(f"line {number} of {path} cannot be used: {error}") from error
