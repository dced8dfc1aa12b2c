"""What is open, by number: numbers are not used twice, so that a stale handle is found out."""

import itertools
import threading
from dataclasses import dataclass, field
from typing import TypeVar

from megrez.runtime.capi.options import OpenOptions
from megrez.runtime.capi.status import HandleError
from megrez.runtime.capi.streams import Stream
from megrez.runtime.serving.http.spelling import Spelling
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Request
from megrez.runtime.serving.tools.formats import ToolFormat


@dataclass(slots=True, kw_only=True, eq=False)
class Options:
    """A handle's options, which megrez_options_set replaces."""

    chosen: OpenOptions = field(default_factory=OpenOptions)


@dataclass(slots=True, kw_only=True, eq=False)
class Opened:
    """A model. requests, prompt_tokens: of all its requests. output_tokens: of those that were freed."""

    llm: LLM
    spelling: Spelling
    tool_format: ToolFormat | None
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Submitted:
    """A request and its stream."""

    model: Opened
    request: Request
    stream: Stream


Kind = TypeVar("Kind", Options, Opened, Submitted)
_WORDS = {Options: "options", Opened: "model", Submitted: "request"}
_ENDED = {Options: "was freed", Opened: "was closed", Submitted: "was freed, or its model closed"}


class Handles:
    """lock: never held while something waits. A signal handler of a Python program may call in meanwhile: reentrant."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._table: dict[int, Options | Opened | Submitted] = {}

    def __contains__(self, handle: int) -> bool:
        return handle in self._table

    def __len__(self) -> int:
        return len(self._table)

    def keep(self, one: Options | Opened | Submitted) -> int:
        """Its handle."""
        with self.lock:
            handle = next(self._numbers)
            self._table[handle] = one
            return handle

    def find(self, handle: int, kind: type[Kind]) -> Kind:
        """Raises HandleError."""
        found = self._table.get(handle)
        if isinstance(found, kind):
            return found
        word = _WORDS[kind]
        if found is not None:
            raise HandleError(f"handle {handle} is of a {_WORDS[type(found)]}: give one of a {word}")
        if not handle:
            raise HandleError(f"the {word} handle is NULL: give one that is open")
        raise HandleError(f"no {word} has the handle {handle}: it {_ENDED[kind]}, or never was one")

    def drop(self, handle: int, kind: type[Kind]) -> Kind:
        """Forget the handle; raises HandleError, for a second call too."""
        with self.lock:
            found = self.find(handle, kind)
            del self._table[handle]
            return found

    def drop_model(self, handle: int) -> tuple[Opened, list[Submitted]]:
        """Forget a model and its requests; raises HandleError."""
        with self.lock:
            model = self.drop(handle, Opened)
            ended = self.requests_of(model)
            self._table = {number: one for number, one in self._table.items() if one not in ended}
            return model, ended

    def requests_of(self, model: Opened) -> list[Submitted]:
        with self.lock:
            return [one for one in self._table.values() if isinstance(one, Submitted) and one.model is model]

    def clear(self) -> list[Opened]:
        """Forget everything; returns the models."""
        with self.lock:
            models = [one for one in self._table.values() if isinstance(one, Opened)]
            self._table = {}
            return models
