"""What all endpoints share: the model, its name, and what is counted."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.metrics import Metrics
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Token


@dataclass(slots=True, kw_only=True)
class Served:
    """name: the model's id. draining: the server ends and takes no more requests."""

    llm: LLM
    name: str
    metrics: Metrics
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _spelling: dict[int, str] = field(default_factory=dict)

    def check_model(self, fields: Fields) -> None:
        """Raise ApiError for another model than the one that is served; without a name it is meant."""
        asked = fields.text("model")
        if asked not in (None, "", self.name):
            raise ApiError(
                f"the model {asked!r} is not served here, {self.name!r} is",
                status=404,
                param="model",
                code="model_not_found",
            )

    def with_logprobs(self, params: SamplingParams, count: int | None, *, prompt: bool = False) -> SamplingParams:
        return dataclasses.replace(params, logprobs=count, prompt_logprobs=count if prompt else None)

    def spell(self, token: int) -> str:
        """The text of one token by itself."""
        if token not in self._spelling:
            self._spelling[token] = self.llm.text.decode([token])
        return self._spelling[token]

    def observe(self, prompt_ids: Sequence[int], token: Token, *, first: bool) -> None:
        """Count one token of a sequence, and the prompt with the first token of the first sequence."""
        self.metrics.observe(token, first=first)
        if first and token.index == 0:
            self.metrics.observe_prompt(len(prompt_ids), token.cached_tokens)


def usage_of(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
