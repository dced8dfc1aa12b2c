"""Messages to a prompt, through the model's own Jinja template; knows no tokens.

A template comes from whoever made the checkpoint: it runs in a sandbox, and what it cannot do there is an error.
Renders what transformers' apply_chat_template renders.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.text import Text

if TYPE_CHECKING:
    from jinja2 import Template

FILE_NAME = "chat_template.jinja"
_LONGEST_DATE = 256

Message = Mapping[str, Any]


class ChatTemplate:
    """A template, compiled when it is first used: text that is continued as it stands needs none.

    source: its text, or the file that holds it. variables: strings that a template may ask for, such as `bos_token`.
    """

    def __init__(self, source: str | Path, variables: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._variables = dict(variables or {})
        self._compiled: Template | None = None

    @property
    def source(self) -> str:
        """The template's text; BundleError where its file cannot be read."""
        return _read(self._source) if isinstance(self._source, Path) else self._source

    def check(self) -> None:
        """Compile the template now; raises BundleError where it cannot be read or is not valid Jinja."""
        self._template()

    def _template(self) -> "Template":
        if self._compiled is None:
            self._compiled = _compile(self.source)
        return self._compiled

    @classmethod
    def open(cls, bundle: Bundle, text: Text) -> "ChatTemplate | None":
        """The bundle's template, or None for a base model. Its `eos_token` is the first of the manifest's stop ids."""
        path = bundle.find(FILE_NAME)
        if path is None:
            return None
        tokens = bundle.manifest.tokens
        ids = {"bos_token": tokens.bos, "eos_token": tokens.stop[0] if tokens.stop else None, "pad_token": tokens.pad}
        spelled = {name: text.token_text(token) for name, token in ids.items()}
        return cls(path, {name: word for name, word in spelled.items() if word})

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for `messages`: each has a `role`, and `content` that is text or a list of parts.

        tools: JSON descriptions of functions, for templates that know tools.

        Raises UsageError for messages that are malformed or that the template refuses, BundleError when it fails.
        """
        from jinja2 import TemplateError, TemplateRuntimeError

        from megrez.runtime.sandbox import LIMITS
        from megrez.runtime.template_limits import Limits

        plain, template = _plain(messages), self._template()
        limits = Limits([plain, self._variables])
        variables = {
            **self._variables,
            "messages": plain,
            "tools": None if tools is None else json.loads(json.dumps(list(tools))),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "range": limits.range,
            LIMITS: limits,
        }
        try:
            return template.render(variables)
        except TemplateRuntimeError as error:
            raise BundleError(f"the chat template failed ({error}): it may not suit these messages") from error
        except TemplateError as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from error
        except Exception as error:  # a template is a program of its own: it can fail in any way
            raise BundleError(f"the chat template failed ({type(error).__name__}: {error})") from error


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain JSON values, so that a template meets no object of ours, and without None fields."""
    if not messages:
        raise UsageError("there are no messages: give at least one, with a role and content")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
            raise UsageError(f"message {at} has no role: give it as {{'role': 'user', 'content': '…'}}")
        if not isinstance(message.get("content"), str | list | None):
            raise UsageError(f"message {at} has content of type {type(message['content']).__name__}: give text")
    try:
        kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
        return list(json.loads(json.dumps(kept)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the messages are not JSON ({error}): use text, numbers, lists and dicts") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error}): compile the bundle again") from error


def _compile(source: str) -> "Template":
    from jinja2 import TemplateError

    from megrez.runtime.sandbox import new_environment

    environment = new_environment()
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise BundleError(f"the chat template is not valid Jinja{where} ({error}): mend {FILE_NAME}") from error


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_DATE:
        raise ValueError(f"a date's format has {len(form)} characters, more than {_LONGEST_DATE}")
    return datetime.now().strftime(form)
