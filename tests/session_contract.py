"""What every Session must do, whatever engine runs it: each engine's tests call `check_session`.

Every step of random shape is compared with its sequences computed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.runtime.errors import UsageError
from megrez.runtime.session import Session

# Of the ids of a sequence [N], the logits of every position [N, vocab_size].
Reference = Callable[[list[int]], NDArray[Any]]


@dataclass(kw_only=True)
class Contract:
    """open: a session of so many slots, with rubbish in its caches. reference: what every step is compared with.

    tolerance: how far logits may be off, 0 for equal ones. truth: a slower reference for one step, with its tolerance.
    vocab_size: of the ids that are fed.
    """

    open: Callable[[int], Session]
    reference: Reference
    tolerance: float
    vocab_size: int
    truth: tuple[Reference, float] | None = None
    most: int = 4
    steps: int = 12
    opened: list[Session] = field(default_factory=list)


def check_session(contract: Contract) -> None:
    """Contract.opened holds the sessions that were used, to look at."""
    for seed in range(2):
        _random_steps_equal_sequences_alone(contract, seed)
    _slots_and_counts_have_defaults(contract)
    _what_cannot_be_is_refused_and_changes_nothing(contract)
    if contract.most > 1:
        _a_sequence_that_leaves_and_one_that_joins_change_no_other(contract)
    session = contract.opened[-1]
    session.close()
    session.close()


def alone(session: Session) -> Reference:
    """A session of one slot as a reference, which reads every sequence from an empty cache."""
    return lambda ids: np.array(session.step(np.array(ids), [0], np.arange(len(ids))))


def one_hot_sum(vocab_size: int) -> Reference:
    """What FakeSession promises, computed without it."""
    return lambda ids: np.eye(vocab_size)[np.cumsum(ids) % vocab_size]


class _Slots:
    """A session, and what each of its slots holds."""

    def __init__(self, contract: Contract, slots: int) -> None:
        self.contract, self.session = contract, contract.open(slots)
        contract.opened.append(self.session)
        self.held: list[list[int]] = [[] for _ in range(slots)]

    def step(self, slots: list[int], starts: list[int], new: list[list[int]], index: list[int]) -> NDArray[Any]:
        tokens = [token for ids in new for token in ids]
        counts = [len(ids) for ids in new]
        found = self.session.step(tokens, starts, index, slots=slots, counts=counts)
        for slot, start, ids in zip(slots, starts, new, strict=True):
            self.held[slot] = self.held[slot][:start] + ids
        self.compare(found, slots, new, index)
        return found

    def compare(self, found: NDArray[Any], slots: list[int], new: list[list[int]], index: list[int]) -> None:
        self.equals(found, self.contract.reference, self.contract.tolerance, slots, new, index)

    def equals(
        self,
        found: NDArray[Any],
        reference: Reference,
        tolerance: float,
        slots: list[int],
        new: list[list[int]],
        index: list[int],
    ) -> None:
        """Logits within the tolerance, and the same greedy id wherever that decides it."""
        every = [reference(self.held[slot])[-len(ids) :] for slot, ids in zip(slots, new, strict=True)]
        expected = np.concatenate(every)[index]
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        first, second = np.sort(expected, axis=1)[:, -1:-3:-1].T
        clear = first - second > 2 * tolerance
        assert (found.argmax(axis=1) == expected.argmax(axis=1))[clear].all()

    def copy(self, source: int, target: int, length: int) -> None:
        self.session.copy(source, target, length)
        self.held[target] = self.held[source][:length]


def _random_steps_equal_sequences_alone(contract: Contract, seed: int) -> None:
    random = np.random.default_rng(seed)
    state = _Slots(contract, contract.most)
    for _ in range(contract.steps):
        count = int(random.integers(1, contract.most + 1))
        slots = random.permutation(contract.most)[:count].tolist()
        new = [_ids(random, contract, int(random.choice([1, 1, 1, 2, 5]))) for _ in slots]
        starts = [_start(random, state, slot, len(ids)) for slot, ids in zip(slots, new, strict=True)]
        total = sum(map(len, new))
        index = random.integers(0, total, int(random.integers(0, total + 2))).tolist()
        state.step(slots, starts, new, index)
        if random.random() < 0.4:
            source, target = random.integers(0, contract.most, 2).tolist()
            state.copy(source, target, int(random.integers(0, len(state.held[source]) + 1)))


def _start(random: np.random.Generator, state: _Slots, slot: int, count: int) -> int:
    """Mostly where the slot ends, at times earlier, and where it is full at its beginning."""
    held = len(state.held[slot])
    if held + count > state.session.capacity:
        return 0
    return int(random.integers(0, held + 1)) if random.random() < 0.2 else held


def _ids(random: np.random.Generator, contract: Contract, count: int) -> list[int]:
    found: list[int] = random.integers(0, contract.vocab_size, count).tolist()
    return found


def _slots_and_counts_have_defaults(contract: Contract) -> None:
    random = np.random.default_rng(5)
    state = _Slots(contract, contract.most)
    new = [_ids(random, contract, 3) for _ in range(contract.most)]
    state.held = [list(ids) for ids in new]
    index = np.arange(3 * contract.most)[::-1]
    found = state.session.step(np.array(new), np.zeros(contract.most, np.int32), index)
    state.compare(found, list(range(contract.most)), new, index.tolist())


def _a_sequence_that_leaves_and_one_that_joins_change_no_other(contract: Contract) -> None:
    """Decoding without slot 1, then with it again and a prompt beside it: the rows between must be swapped."""
    random = np.random.default_rng(6)
    state = _Slots(contract, contract.most)
    every = list(range(contract.most))
    for slot in every:
        state.step([slot], [0], [_ids(random, contract, 3 + slot)], [0])
    others = [slot for slot in every if slot != 1]
    for slots in (every, others, others, every, others[::-1]):
        new = [_ids(random, contract, 1) for _ in slots]
        state.step(slots, [len(state.held[slot]) for slot in slots], new, list(range(len(slots))))
    mixed = [_ids(random, contract, 6 if slot == 1 else 1) for slot in every]
    starts = [0 if slot == 1 else len(state.held[slot]) for slot in every]
    index = list(range(sum(map(len, mixed))))
    found = state.step(every, starts, mixed, index)
    if contract.truth is not None:
        state.equals(found, *contract.truth, every, mixed, index)


def _what_cannot_be_is_refused_and_changes_nothing(contract: Contract) -> None:
    state = _Slots(contract, contract.most)
    most, capacity = contract.most, state.session.capacity
    step, copy = state.session.step, state.session.copy
    state.step([0], [0], [[1, 2, 3]], [2])
    refused: list[tuple[str, Callable[[], object]]] = [
        (f"slot {most} was requested, the session has slots 0 to", lambda: step([1], [0], [], slots=[most])),
        ("slot -1 was requested", lambda: step([1], [0], [], slots=[-1])),
        ("slot 0 appears twice", lambda: step([1, 2], [0, 0], [], slots=[0, 0])),
        (f"slot {most} was requested", lambda: step(np.ones((most + 1, 2)), np.zeros(most + 1), [])),
        ("slot 0 gets 0 new tokens", lambda: step([], [0], [])),
        ("slot 0 gets 0 new tokens", lambda: step([1], [0], [], counts=[0])),
        ("the step has no sequences", lambda: step([1], [], [])),
        ("2 tokens were given, the counts add up to 3", lambda: step([1, 2], [0], [], counts=[3])),
        ("1 starts, 1 slots and 2 counts were given", lambda: step([1, 2], [0], [], slots=[0], counts=[1, 1])),
        ("3 tokens do not divide among 2 sequences", lambda: step([1, 2, 3], [0, 0], [])),
        ("a sequence starts at -1", lambda: step([1], [-1], [])),
        (
            f"{capacity} cached and 1 new tokens do not fit the context of {capacity}",
            lambda: step([1], [capacity], []),
        ),
        (
            f"0 cached and {capacity + 1} new tokens do not fit",
            lambda: step([1] * (capacity + 1), [0], [], slots=[0]),
        ),
        ("logits of token 2 were requested, the step has tokens 0 to 1", lambda: step([1, 2], [0], [0, 2])),
        ("logits of token -1 were requested", lambda: step([1, 2], [0], [-1])),
        (f"slot {most} was requested", lambda: copy(0, most, 1)),
        ("slot -1 was requested", lambda: copy(-1, 0, 1)),
        (f"a copy of {capacity + 1} tokens was requested, a slot holds 0 to", lambda: copy(0, 0, capacity + 1)),
        ("a copy of -1 tokens was requested", lambda: copy(0, 0, -1)),
    ]
    for said, ask in refused:
        with pytest.raises(UsageError, match=f"^{said}") as caught:
            ask()
        assert "\n" not in str(caught.value)
    state.step([0], [3], [[4]], [0])
