"""Splits a step's sequences into groups that an engine runs at once; independent of engines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from megrez.engines.slot_order import Indices, SlotOrder, Swap
from megrez.runtime.batch import Batch, Lengths, Tokens
from megrez.runtime.session import Logits

# Most tokens of a group with padding: hidden states have room for it, and layers other than DecoderLayer compute it.
MOST_PADDED = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """B sequences of T new tokens at most, in the cache entries first .. first + B - 1.

    tokens: [B, T] ids, each sequence's followed by padding. starts: [B] cached lengths. counts: [B] new tokens.
    index: [w] positions in tokens.reshape(-1) whose logits are needed.
    wanted: [w] the positions of these in the step's logits, ascending.
    """

    first: int
    tokens: Tokens
    starts: Lengths
    counts: Lengths
    index: Tokens
    wanted: Indices


def arrange(
    batch: Batch, order: SlotOrder, swap: Callable[[list[Swap]], None], *, ragged: bool, padded: bool = False
) -> Iterator[Group]:
    """The groups of `batch`: all sequences, for one read of the weights, if padding costs the engine little (`padded`)
    and there are at most MOST_PADDED tokens; otherwise by number of new tokens.

    Sequences with one new token then form one group: `swap` is called to make their cache entries consecutive if they
    are not. Longer ones form groups where their entries are consecutive. ragged: whether the engine supports groups of
    several sequences with both cached tokens and several new ones; otherwise each of these is a group. Run a group
    before the next is generated.
    """
    order.hold(batch.slots, batch.starts)
    together = padded and len(batch.slots) * int(batch.counts.max()) <= MOST_PADDED
    for sequences in [np.arange(len(batch.slots))] if together else _alike(batch, order, ragged):
        if swaps := order.bring_together(batch.slots[sequences]):
            swap(swaps)
        yield _group(batch, order, sequences)
        order.hold(batch.slots[sequences], batch.starts[sequences] + batch.counts[sequences])


def _alike(batch: Batch, order: SlotOrder, ragged: bool) -> Iterator[Indices]:
    """The sequences of each group."""
    if len(batch.slots) == 1:
        yield np.zeros(1, np.int64)
        return
    for count in np.unique(batch.counts):
        alike = np.flatnonzero(batch.counts == count)
        yield from [alike] if count == 1 else _parts(batch, order, alike, ragged)


def _parts(batch: Batch, order: SlotOrder, sequences: Indices, ragged: bool) -> list[Indices]:
    cached = np.zeros(len(sequences), np.bool_) if ragged else batch.starts[sequences] > 0
    fresh, alone = sequences[~cached], sequences[cached]
    together = order.runs(batch.slots[fresh]) if len(fresh) else []
    return [*(fresh[part] for part in together), *alone.reshape(-1, 1)]


def _group(batch: Batch, order: SlotOrder, sequences: Indices) -> Group:
    if len(batch.slots) == 1:
        return Group(
            first=int(order.entries_of(batch.slots)[0]),
            tokens=batch.tokens[None],
            starts=batch.starts,
            counts=batch.counts.astype(np.int32),
            index=batch.logits_index,
            wanted=np.arange(len(batch.logits_index)),
        )
    sequences = sequences[np.argsort(order.entries_of(batch.slots[sequences]))]
    place = np.full(len(batch.slots), -1)  # per sequence of the batch: its position in the group
    place[sequences] = np.arange(len(sequences))
    wanted = np.flatnonzero(place[batch.owners] >= 0)
    counts = batch.counts[sequences]
    width = int(counts.max())
    tokens = np.zeros((len(sequences), width), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: batch.counts[sequence]] = batch.tokens_of(sequence)
    return Group(
        first=int(order.entries_of(batch.slots[sequences])[0]),
        tokens=tokens,
        starts=batch.starts[sequences],
        counts=counts.astype(np.int32),
        index=place[batch.owners[wanted]] * width + batch.columns[wanted],
        wanted=wanted,
    )


def run_groups(groups: Iterator[Group], run: Callable[[Group], Logits], batch: Batch, vocab_size: int) -> Logits:
    """The logits [W, vocab_size] of all groups. run: returns [w, vocab_size] of one, valid until its next call."""
    joined: Logits | None = None
    for group in groups:
        logits = run(group)
        if len(group.tokens) == len(batch.slots):
            joined = logits  # the only group
            continue
        if joined is None:
            joined = np.empty((len(batch.logits_index), vocab_size), np.float32)
        joined[group.wanted] = logits
    assert joined is not None, "a batch has a sequence"
    return joined
