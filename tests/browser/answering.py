"""A session that answers a question with "heard: " and the question, or with what `answers` has for it; not a test."""

from collections.abc import Sequence
from typing import Any

from megrez.runtime.session import Batch
from tests.runtime.conftest import SPECIALS, byte_level_tokenizer
from tests.runtime.serving.http.servers import Gated

CAPACITY = 1000
TOKENIZER = byte_level_tokenizer()
ROLE_START, ROLE_END, TURN_END = map(TOKENIZER.token_to_id, SPECIALS[1:4])


class Answering(Gated):
    """The next token follows from the cached conversation alone. prompts: the texts that were answered."""

    def __init__(self, **shape: int) -> None:
        super().__init__(**shape)
        self.answers: dict[str, str] = {}
        self.prompts: list[str] = []

    def step(self, *batch: Any, slots: Any = None, counts: Any = None) -> Any:
        logits = super().step(*batch, slots=slots, counts=counts)
        read = Batch.of(*batch, slots, counts, max_slots=self.slots, capacity=self.capacity)
        for row, (sequence, column) in enumerate(zip(read.owners, read.columns, strict=True)):
            context = self.cache[read.slots[sequence], : read.starts[sequence] + column + 1]
            logits[row] = 0
            logits[row, self._next(context.tolist())] = 50
        return logits

    def _next(self, context: Sequence[int]) -> int:
        *_, question_starts, answer_starts = (at + 1 for at, one in enumerate(context) if one == ROLE_END)
        question = TOKENIZER.decode(context[question_starts : context.index(TURN_END, question_starts)])
        said = len(context) - answer_starts
        if not said:
            self.prompts.append(TOKENIZER.decode(context, skip_special_tokens=False))
        script = [*TOKENIZER.encode(self.answers.get(question, f"heard: {question}")).ids, TURN_END]
        return script[said]
