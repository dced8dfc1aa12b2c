"""Chooses the sequences of the next step and their numbers of tokens; independent of session and sampling."""

from collections.abc import Sequence

from megrez.runtime.serving.request import Generation

Planned = list[tuple[Generation, int]]


def plan_step(running: Sequence[Generation], *, chunk: int, mixed_chunk: int) -> Planned:
    """Each decoding sequence gets one token; those in prefill share one chunk, in order of arrival.

    chunk: prompt tokens per step if no sequence decodes. mixed_chunk: prompt tokens per step if some do, which delays
    their next tokens. Where nobody waits for those, prompts come first: then more sequences decode in each step.
    """
    decoding: Planned = [(one, 1) for one in running if not one.is_prefilling]
    is_awaited = any(one.request.is_awaited for one, _ in decoding)
    left = mixed_chunk if is_awaited else chunk
    prefilling: Planned = []
    for one in running:
        if one.is_prefilling and left > 0:
            count = min(one.pending, left)
            prefilling.append((one, count))
            left -= count
    return prefilling + decoding if is_awaited or not prefilling else prefilling
