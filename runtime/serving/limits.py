"""What a request may ask of a session: the length of its prompt and of its output."""

from collections.abc import Sequence

from megrez.runtime.errors import UsageError
from megrez.runtime.session import Session


def output_limit(session: Session, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
    """How many tokens may be generated. The last one is not fed back, so it needs no space in the cache.

    Raises UsageError for a prompt that is empty, too long or has unknown ids.
    """
    if not prompt_ids:
        raise UsageError("the prompt is empty: give at least one token")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: give 1 or more")
    if len(prompt_ids) > session.capacity:
        raise UsageError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {session.capacity}: "
            "shorten it, or compile with a longer context"
        )
    if unknown := [i for i in prompt_ids if not 0 <= i < session.vocab_size]:
        raise UsageError(
            f"token id {unknown[0]} is outside the model's vocabulary of {session.vocab_size}: "
            "the tokenizer does not belong to these weights"
        )
    limit = session.capacity - len(prompt_ids) + 1
    return limit if max_tokens is None else min(limit, max_tokens)
