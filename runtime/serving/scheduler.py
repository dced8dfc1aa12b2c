"""Which sequences are in the next step and with how many tokens each; knows no session and no sampling."""

from collections.abc import Sequence

from megrez.runtime.serving.request import Generation

Planned = list[tuple[Generation, int]]


def plan_step(running: Sequence[Generation], *, chunk: int, mixed_chunk: int) -> Planned:
    """Each running sequence that decodes gets its one token; those in prefill share one chunk, first come first served.

    chunk: prompt tokens of a step in which nobody decodes. mixed_chunk: prompt tokens beside decoding sequences, whose
    next tokens wait for them.
    """
    decoding: Planned = [(one, 1) for one in running if not one.is_prefilling]
    left = mixed_chunk if decoding else chunk
    prefilling: Planned = []
    for one in running:
        if one.is_prefilling and left > 0:
            count = min(one.pending, left)
            prefilling.append((one, count))
            left -= count
    return prefilling + decoding
