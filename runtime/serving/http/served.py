"""The state that all endpoints share: the model, its id, metrics and limits."""

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
    """name: the model's id. most_prompts: the most prompts of one request, which have to fit the slots and the queue.

    tool_format: how the model writes function calls; None where the format is not known.
    draining: the server is shutting down and accepts no more requests. closed: unfinished requests have been ended.
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
        """Raise ApiError where the request names another model; it may name none."""
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
        """End unfinished requests, whose clients get an error. Blocks until the engine's current step ends."""
        self.closed = self.draining = True
        self.llm.close()
