"""Constraints on an answer's text: a JSON schema, a regular expression, a choice, a grammar or tool calls.

Data only; megrez.runtime.serving.guided enforces them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megrez.runtime.errors import UsageError

Schema = Mapping[str, Any] | bool
KINDS = ("json_schema", "json_object", "regex", "choice", "grammar", "structural")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`begin`, a JSON value that `schema` accepts, `end`; begin and end may contain special tokens."""

    name: str
    begin: str
    schema: Schema
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Structural:
    """One or more segments, each any of `segments`, with `separator` between them.

    free_text: whether text around the segments, or no segment, is allowed. trigger: the beginning of every segment,
    which ends free text; empty where a segment is the whole answer. repeat: whether several segments are allowed.
    answer: with free_text, the schema of an answer without segments; segments then have no text around them.
    """

    segments: tuple[Segment, ...]
    separator: str = ""
    free_text: bool = False
    trigger: str = ""
    repeat: bool = True
    answer: Schema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided:
    """A constraint, under vLLM's names: exactly one field; UsageError otherwise.

    json_schema: a schema, or its text (draft 2020-12). json_object: any JSON object. regex: in Rust's syntax, matched
    against the whole answer. choice: one of these strings. grammar: Lark, or GBNF, whose first rule is `root`.
    structural: tool calls; see megrez.runtime.serving.tools.
    """

    json_schema: Schema | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural: Structural | None = None

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False) or self._is_false_schema(name)]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise UsageError(f"guided output got {found}: give exactly one of {', '.join(KINDS)}")
        if self.choice is not None and (isinstance(self.choice, str) or not self.choice):
            raise UsageError(f"choice is {self.choice!r}: give a list of at least one string")
        wrong = [one for one in self.choice or () if not isinstance(one, str)]
        if wrong:
            raise UsageError(f"choice holds {wrong[0]!r}: give strings")

    def _is_false_schema(self, name: str) -> bool:
        return name == "json_schema" and self.json_schema is False
