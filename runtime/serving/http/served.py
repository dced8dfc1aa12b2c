"""What all endpoints share: the model, its name, and what is counted."""

import time
from dataclasses import dataclass, field

from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.metrics import Metrics
from megrez.runtime.serving.http.spelling import Spelling
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.tools.formats import ToolFormat, choose_format


@dataclass(slots=True, kw_only=True)
class Served:
    """name: the model's id. most_prompts: of one request, which must fit the slots and the queue together.

    tool_format: how the model calls functions; None where that is not known.
    draining: the server ends and takes no more requests. closed: those that were not finished by then are ended.
    """

    llm: LLM
    name: str
    metrics: Metrics
    spelling: Spelling
    most_prompts: int
    tool_format: ToolFormat | None
    draining: bool = False
    closed: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, llm: LLM, name: str, *, queue_limit: int) -> "Served":
        return cls(
            llm=llm,
            name=name,
            metrics=Metrics(llm, name),
            spelling=Spelling(llm.text),
            most_prompts=queue_limit + llm.session.slots,
            tool_format=choose_format(llm.template, llm.text),
        )

    def check_model(self, fields: Fields) -> None:
        """Raise ApiError for another model than the one that is served; without a name it is meant."""
        asked = fields.text("model")
        if asked not in (None, "", self.name):
            raise self.no_model(asked)

    def no_model(self, asked: str | None) -> ApiError:
        return ApiError(
            f"the model {asked!r} is not served here, {self.name!r} is",
            status=404,
            param="model",
            code="model_not_found",
        )

    def close(self) -> None:
        """End whatever is not finished; its clients are told. Blocks until the engine's step is over."""
        self.closed = self.draining = True
        self.llm.close()
