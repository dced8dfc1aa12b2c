"""How many tokens to draft for each sequence, so that a second yields the most tokens; knows no drafter."""

from collections.abc import Sequence

from megrez.runtime.serving.drafting.estimates import StepCosts

# Less than this is within the error of the estimates.
LEAST_GAIN = 1.03
# Of drafts and pending tokens together: beyond it arithmetic binds on most machines.
MOST_ROWS = 64


def best_lengths(chances: Sequence[Sequence[float]], costs: StepCosts, *, drafting_s: float) -> list[int]:
    """The lengths of drafts, 0 where it pays more to leave them out.

    chances: for each sequence of the step, the probabilities that its first drafted token is accepted, that its first
    two are, and so on. drafting_s: seconds to draft one more token for all sequences at once.
    """
    sequences = len(chances)
    offers = sorted(
        ((chance, at, depth) for at, own in enumerate(chances) for depth, chance in enumerate(own, 1)),
        key=lambda offer: (-offer[0], offer[2]),
    )
    best, taken = LEAST_GAIN * sequences / costs.of(sequences), 0
    tokens, deepest = float(sequences), 0
    for count, (chance, _, depth) in enumerate(offers[: max(MOST_ROWS - sequences, 0)], 1):
        tokens += chance
        deepest = max(deepest, depth)
        rate = tokens / (costs.of(sequences + count) + deepest * drafting_s)
        if rate > best:
            best, taken = rate, count
    lengths = [0] * sequences
    for _, at, _ in offers[:taken]:
        lengths[at] += 1
    return lengths


def even_lengths(most: Sequence[int]) -> list[int]:
    """As long as possible; what is left of MOST_ROWS is shared evenly."""
    each = max((MOST_ROWS - len(most)) // max(len(most), 1), 0)
    return [min(one, each) for one in most]
