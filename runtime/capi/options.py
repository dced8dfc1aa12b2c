"""Options of megrez_open, by name and as text."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from megrez.runtime.errors import UsageError
from megrez.runtime.serving.drafting.choose import MODES, Speculate
from megrez.runtime.serving.llm import SLOTS

_LARGEST = 2**31 - 1
# Name to the least and the largest value.
_INTEGERS = {"threads": (1, 1024), "slots": (1, 4096), "context": (1, _LARGEST), "queue_limit": (0, _LARGEST)}
_CHOICES = {"speculate": MODES}
_TEXTS = ("draft",)
_BOOLEANS = {"verify": {"true": True, "1": True, "false": False, "0": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """As LLM's parameters."""

    threads: int | None = None
    slots: int = SLOTS
    context: int | None = None
    queue_limit: int | None = None
    verify: bool = False
    speculate: Speculate = "auto"
    draft: str | None = None

    def having(self, name: str, value: str) -> "OpenOptions":
        """A copy with one option set; UsageError for an unknown name or a value that it cannot have."""
        given: dict[str, Any] = {name: _read(name, value.strip())}
        return dataclasses.replace(self, **given)


def _read(name: str, value: str) -> int | bool | str:
    if name in _INTEGERS:
        low, high = _INTEGERS[name]
        number = int(value) if value.isascii() and value.isdecimal() and len(value) <= len(str(_LARGEST)) else -1
        if not low <= number <= high:
            raise UsageError(f"the option {name} is {value[:40]!r}: give a whole number from {low} to {high}")
        return number
    if name in _BOOLEANS:
        known = _BOOLEANS[name]
        if value not in known:
            raise UsageError(f"the option {name} is {value[:40]!r}: give true or false")
        return known[value]
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise UsageError(f"the option {name} is {value[:40]!r}: give one of {', '.join(_CHOICES[name])}")
        return value
    if name in _TEXTS:
        return value
    names = ", ".join(field.name for field in dataclasses.fields(OpenOptions))
    raise UsageError(f"there is no option {name[:40]!r}: the options are {names}")
