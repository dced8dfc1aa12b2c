"""Prompt lookup (Saxena, 2023): where the last tokens occurred before, draft what followed them there."""

from collections.abc import Sequence

from megrez.runtime.serving.drafting.drafter import Draft, Wanted

# Lengths of the indexed n-grams; the longer one is tried first.
SIZES = (4, 2)
# Earlier occurrences that are compared, the latest first; the one that matches the most tokens is taken.
CANDIDATES = 8
LONGEST_MATCH = 24
# A copy whose last tokens match no more, as after a word that was replaced, may go on this much earlier or later in
# its source, if at least one token matches there.
NEAR = range(-3, 9)
# Such a copy was a match of this many tokens, at most so many tokens ago.
COPY_MATCH, COPY_AGE = 5, 24
# A drafted token's kind is given by the length of the match before it: 2, 3, 4 to 5, 6 to 8, 9 to 16, or more tokens;
# and near the place where a copy was left: 1, 2 to 3, or more.
_KIND_STARTS = (2, 3, 4, 6, 9, 17)
_NEAR_STARTS = (1, 2, 4)
_EXPECTED = (0.2, 0.3, 0.45, 0.6, 0.8, 0.9, 0.4, 0.65, 0.85)


class NGramIndex:
    """Where the n-grams of one growing sequence occurred. A token costs the same time wherever it stands."""

    def __init__(self) -> None:
        # By size: hash of an n-gram → the position after its latest occurrence; and, for each position from `size` on,
        # the previous position of the same hash, 0 for none. Comparing tokens rules out collisions.
        self._latest: dict[int, dict[int, int]] = {size: {} for size in SIZES}
        self._previous: dict[int, list[int]] = {size: [] for size in SIZES}

    def extend(self, ids: Sequence[int]) -> None:
        """Index the n-grams that a token follows; `ids` begin with those of the call before."""
        for size in SIZES:
            latest, previous = self._latest[size], self._previous[size]
            for position in range(size + len(previous), len(ids)):
                key = hash(tuple(ids[position - size : position]))
                previous.append(latest.get(key, 0))
                latest[key] = position

    def longest(self, ids: Sequence[int]) -> tuple[int, int]:
        """The position after the earlier tokens that match the end of `ids`, and how many do; (0, 0) if too few do."""
        for size in SIZES:
            found = self._longest(ids, size) if len(ids) > size else (0, 0)
            if found[1]:
                return found
        return 0, 0

    def _longest(self, ids: Sequence[int], size: int) -> tuple[int, int]:
        best, most = 0, size - 1
        position = self._latest[size].get(hash(tuple(ids[-size:])), 0)
        for _ in range(CANDIDATES):
            if not position or most == LONGEST_MATCH:
                break
            length = _match(ids, position)
            if length > most:
                best, most = position, length
            position = self._previous[size][position - size]
        return (best, most) if best else (0, 0)


class PromptLookup:
    """A Drafter that needs no model."""

    expected = _EXPECTED
    seconds = 0.0

    def __init__(self) -> None:
        self._indexes: dict[int, NGramIndex] = {}
        self._positions: dict[int, int] = {}
        # By slot, of its latest copy: the position from which it went on, and the length of the sequence then.
        self._copies: dict[int, tuple[int, int]] = {}

    def prospects(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        index = self._indexes.setdefault(slot, NGramIndex())
        index.extend(ids)
        position, length = index.longest(ids)
        kinds = _KINDS
        if length < COPY_MATCH and slot in self._copies:
            near = _near(ids, *self._copies[slot])
            if near[1]:
                (position, length), kinds = near, _NEAR_KINDS
        if length >= COPY_MATCH:
            self._copies[slot] = position, len(ids)
        self._positions[slot] = position
        return kinds[length : length + most] if length else ()

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft]:
        return [_continued(one.ids, self._positions[one.slot], one.count) for one in wanted]

    def release(self, slot: int) -> None:
        self._indexes.pop(slot, None)
        self._positions.pop(slot, None)
        self._copies.pop(slot, None)

    def close(self) -> None:
        self._indexes.clear()


def _kind(length: int, starts: Sequence[int]) -> int:
    return max(sum(length >= start for start in starts) - 1, 0)


# By length, up to more than a match and a draft together.
_KINDS = tuple(_kind(length, _KIND_STARTS) for length in range(256))
_NEAR_KINDS = tuple(len(_KIND_STARTS) + _kind(length, _NEAR_STARTS) for length in range(256))


def _near(ids: Sequence[int], position: int, length: int) -> tuple[int, int]:
    """Where a copy goes on now that went on from `position` when `ids` were `length` long, and how many tokens match
    before that place; (0, 0) if none does.
    """
    passed = len(ids) - length
    if passed > COPY_AGE:
        return 0, 0
    places = [at for at in (position + passed + shift for shift in NEAR) if 0 < at < len(ids)]
    best = max(places, key=lambda at: (_match(ids, at), -abs(at - position - passed)), default=0)
    matched = _match(ids, best)
    return (best, matched) if matched else (0, 0)


def _match(ids: Sequence[int], position: int) -> int:
    """How many tokens before `position` equal those at the end."""
    length = 0
    while length < min(position, LONGEST_MATCH) and ids[position - 1 - length] == ids[-1 - length]:
        length += 1
    return length


def _continued(ids: Sequence[int], position: int, count: int) -> Draft:
    """`count` tokens from `position` on; at the end of `ids` the draft itself goes on, as in a repetition."""
    found = list(ids[position : position + count])
    while len(found) < count:
        found.append(found[position - len(ids) + len(found)])
    return found
