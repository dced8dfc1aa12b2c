"""A step's sequences in groups that an engine runs at once; knows no engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from megrez.engines.slot_rows import Indices, SlotRows, Swap
from megrez.runtime.batch import Batch, Lengths, Tokens
from megrez.runtime.session import Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """B sequences of T new tokens each, in the cache's rows first .. first + B - 1.

    tokens: [B, T] ids. starts: [B] cached lengths. index: [w] positions in tokens.reshape(-1) whose logits are wanted.
    wanted: [w] which of the step's logits these are, ascending.
    """

    first: int
    tokens: Tokens
    starts: Lengths
    index: Tokens
    wanted: Indices


def arrange(batch: Batch, rows: SlotRows, swap: Callable[[list[Swap]], None], *, ragged: bool) -> Iterator[Group]:
    """The groups that `batch` splits into, by count: a padded sequence would cost as much as the longest one.

    Sequences of one new token are one group: `swap` makes their rows neighbours where they are not. Longer ones go
    together where they are neighbours. ragged: whether the engine takes several of these at once when some of their
    tokens are cached; else such a sequence is a group of its own. Run a group before asking for the next.
    """
    rows.hold(batch.slots, batch.starts.astype(np.int64))
    for count in np.unique(batch.counts):
        alike = np.flatnonzero(batch.counts == count)
        for sequences in [alike] if count == 1 else _parts(batch, rows, alike, ragged):
            if swaps := rows.bring_together(batch.slots[sequences]):
                swap(swaps)
            yield _group(batch, rows, sequences)
            rows.hold(batch.slots[sequences], batch.starts[sequences] + count)


def _parts(batch: Batch, rows: SlotRows, sequences: Indices, ragged: bool) -> list[Indices]:
    cached = np.zeros(len(sequences), np.bool_) if ragged else batch.starts[sequences] > 0
    fresh, alone = sequences[~cached], sequences[cached]
    together = rows.runs(batch.slots[fresh]) if len(fresh) else []
    return [*(fresh[part] for part in together), *alone.reshape(-1, 1)]


def _group(batch: Batch, rows: SlotRows, sequences: Indices) -> Group:
    sequences = sequences[np.argsort(rows.rows_of(batch.slots[sequences]))]
    place = np.full(len(batch.slots), -1)  # of each sequence in the group
    place[sequences] = np.arange(len(sequences))
    wanted = np.flatnonzero(place[batch.owners] >= 0)
    width = int(batch.counts[sequences[0]])
    return Group(
        first=int(rows.rows_of(batch.slots[sequences])[0]),
        tokens=np.stack([batch.tokens_of(sequence) for sequence in sequences]),
        starts=batch.starts[sequences],
        index=place[batch.owners[wanted]] * width + batch.columns[wanted],
        wanted=wanted,
    )


def run_groups(groups: Iterator[Group], run: Callable[[Group], Logits], batch: Batch, vocab_size: int) -> Logits:
    """The logits [W, vocab_size] of all groups. run: of one, [w, vocab_size] and valid until it is called again."""
    joined: Logits | None = None
    for group in groups:
        logits = run(group)
        if len(group.tokens) == len(batch.slots):
            joined = logits  # there is no other group
            continue
        if joined is None:
            joined = np.empty((len(batch.logits_index), vocab_size), np.float32)
        joined[group.wanted] = logits
    assert joined is not None, "a batch has a sequence"
    return joined
