"""The formats in which models write function calls, and the choice of a bundle's; independent of requests."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Protocol

from megrez.runtime.chat import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A call is begin, white space, a JSON object with "name" and `arguments_key`, white space, end.

    bare: begin may be missing where the answer begins with the object, and end is empty. separator: between calls.
    explained: whether the prompt has to describe the format, since the model may not be trained on it.
    """

    name: str
    begin: str
    end: str
    arguments_key: str
    padding: str = ""
    separator: str = ""
    bare: bool = False
    explained: bool = False


MEGREZ = ToolFormat(name="megrez", begin="<|function_start|>", end="<|function_end|>", arguments_key="arguments")
HERMES = ToolFormat(
    name="hermes", begin="<tool_call>", end="</tool_call>", arguments_key="arguments", padding="\n", separator="\n"
)
LLAMA3 = ToolFormat(
    name="llama3", begin="<|python_tag|>", end="", arguments_key="parameters", separator="; ", bare=True
)


# For templates that support no functions: the most common format.
GENERIC = dataclasses.replace(HERMES, name="generic", explained=True)


class TokenIds(Protocol):
    """See megrez.runtime.text.Text."""

    def token_id(self, spelling: str) -> int | None: ...


def choose_format(template: ChatTemplate | None, text: TokenIds) -> ToolFormat | None:
    """The format that the template or the tokenizer indicates, GENERIC for a template that supports no functions.

    None for a template that supports functions in an unknown format, and without a template.
    """
    if template is None:
        return None
    source = template.source
    if text.token_id(MEGREZ.begin) is not None and text.token_id(MEGREZ.end) is not None:
        return MEGREZ
    if HERMES.begin in source and "<function=" not in source and knows_tools(template):
        return HERMES
    if LLAMA3.begin in source or ("ipython" in source and '"parameters"' in source):
        return LLAMA3
    return None if knows_tools(template) else GENERIC


def knows_tools(template: ChatTemplate) -> bool:
    """Whether the template reads the variable `tools`."""
    return re.search(r"\{[%{][^%}]*\btools\b", template.source) is not None
