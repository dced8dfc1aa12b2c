"""What speculation measures as it goes: seconds of a step by its rows, and how often drafted tokens are accepted."""

from bisect import bisect_left
from collections.abc import Callable

# Of the difference between a new measurement and the estimate, how much the estimate moves.
_SMOOTHING = 0.25
# A first measurement may include what is set up once: at most this many times what the others suggest is believed.
_MOST_SURPRISE = 2.0
# Until larger steps were measured, each row is taken to add this share of a one-row step. Low, so that they are tried.
_ROW_SHARE = 0.08
# Steps measured before the estimates are used.
_ENOUGH = 2


class StepCosts:
    """Seconds of a step by its number of rows (tokens), measured for some numbers and interpolated for others."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seconds: dict[int, float] = {}
        self._noted = 0

    @property
    def known(self) -> bool:
        return self._noted >= _ENOUGH

    def note(self, rows: int, seconds: float) -> None:
        self._noted += 1
        if rows in self._seconds:
            self._seconds[rows] += _SMOOTHING * (seconds - self._seconds[rows])
            return
        first = min(seconds, _MOST_SURPRISE * self.of(rows)) if self._rows else seconds
        self._rows.insert(bisect_left(self._rows, rows), rows)
        self._seconds[rows] = first

    def of(self, rows: int) -> float:
        """Linear between measured numbers of rows; at least one must have been measured."""
        if rows in self._seconds:
            return self._seconds[rows]
        at = bisect_left(self._rows, rows)
        if at == 0:
            return self._seconds[self._rows[0]]
        low = self._rows[at - 1]
        if at < len(self._rows):
            high = self._rows[at]
            share = (rows - low) / (high - low)
            return (1 - share) * self._seconds[low] + share * self._seconds[high]
        return self._seconds[low] + (rows - low) * self._slope()

    def _slope(self) -> float:
        """Seconds a row beyond the largest measured step."""
        first, last = self._rows[0], self._rows[-1]
        if first == last:
            return _ROW_SHARE * self._seconds[first]
        return max((self._seconds[last] - self._seconds[first]) / (last - first), 0.0)


class Acceptance:
    """Estimates by kind the probability that a drafted token is accepted if those before it are; forgets slowly."""

    def __init__(self, expected: Callable[[int], float], kinds: int, *, memory: float, weight: float) -> None:
        """expected: by kind, what is taken to be true before any observation, and counts as `weight` of them.

        memory: how many observations of a kind are remembered, about.
        """
        self._expected, self._weight, self._keep = expected, weight, 1 - 1 / memory
        self._accepted, self._seen = [0.0] * kinds, [0.0] * kinds

    def of(self, kind: int) -> float:
        expected = self._weight * self._expected(kind)
        return (self._accepted[kind] + expected) / (self._seen[kind] + self._weight)

    def note(self, kind: int, accepted: bool) -> None:
        self._accepted[kind] = self._keep * self._accepted[kind] + accepted
        self._seen[kind] = self._keep * self._seen[kind] + 1
