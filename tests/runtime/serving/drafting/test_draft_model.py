"""A draft model's drafts against its greedy continuation, computed from nothing each time."""

import random

import numpy as np
import pytest

from megrez.runtime.serving.drafting import draft_model
from megrez.runtime.serving.drafting.draft_model import DraftModel
from megrez.runtime.serving.drafting.drafter import Wanted
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.engine import Engine
from tests.runtime.serving.drafting.speculating import VOCAB, Client, Repetitive, always, drain


def continued(session: Repetitive, ids: list[int], count: int) -> list[int]:
    found = list(ids)
    for _ in range(count):
        found.append(int(session.logits_after(found).argmax()))
    return found[len(ids) :]


def test_drafts_are_greedy_whatever_was_accepted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_model, "CHUNK", 24)
    for seed in range(10):
        draw = random.Random(seed)
        session = Repetitive(slots=3, capacity=80)
        drafter = DraftModel(session, vocab_size=VOCAB)
        sequences = {slot: draw.choices(range(VOCAB), k=draw.choice([3, 20, 45])) for slot in range(3)}
        for _ in range(25):
            slots = draw.sample(range(3), draw.randint(1, 3))
            wanted = []
            for slot in slots:
                room = len(drafter.prospects(slot, sequences[slot], 4))
                assert room == max(min(4, 81 - len(sequences[slot])), 0)
                if room:
                    wanted.append(Wanted(slot=slot, ids=sequences[slot], count=draw.randint(1, room)))
            drafts = drafter.draft(wanted)
            for one, draft in zip(wanted, drafts, strict=True):
                assert draft in ([], continued(session, list(one.ids), one.count))
                kept = draft[: draw.randint(0, len(draft))]
                sequences[one.slot] = [*one.ids, *kept, draw.randrange(VOCAB)]
            if draw.random() < 0.2 or len(sequences[slots[0]]) > 78:
                drafter.release(slots[0])
                keep = draw.choice([0, 2, 30])
                sequences[slots[0]] = [*sequences[slots[0]][:keep], *draw.choices(range(VOCAB), k=5)]


def test_a_long_prompt_is_read_chunk_by_chunk_and_siblings_copy_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_model, "CHUNK", 24)
    session = Repetitive(slots=2, capacity=96)
    drafter = DraftModel(session, vocab_size=VOCAB)
    prompt = random.Random(0).choices(range(VOCAB), k=60)
    drafts = [drafter.draft([Wanted(slot=0, ids=prompt, count=2)])[0] for _ in range(3)]
    assert drafts == [[], [], continued(session, prompt, 2)]
    assert session.rows == [24, 24, 12, 1]
    other = [*prompt[:50], 1, 2]
    assert drafter.draft([Wanted(slot=1, ids=other, count=1)]) == [continued(session, other, 1)]
    assert session.rows[4:] == [2]


def test_tokens_that_the_model_does_not_have_are_not_drafted() -> None:
    session = Repetitive(slots=1)
    ids = [1, 2, 3]
    expected = continued(session, ids, 6)
    limit = max(expected[:4])  # a token of the draft
    drafter = DraftModel(session, vocab_size=limit)
    assert drafter.draft([Wanted(slot=0, ids=ids, count=6)]) == [expected[: expected.index(limit)]]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_draft_model_changes_no_answer_and_saves_steps(temperature: float) -> None:
    def run(speculation: Speculation | None) -> tuple[list[object], int]:
        session = Repetitive(slots=3)
        engine = Engine(session, stop_ids=(3,), speculation=speculation)
        clients = [
            Client(engine, [1, 2, at], n=2, max_tokens=60, temperature=temperature, seed=at, ignore_eos=True)
            for at in range(3)
        ]
        drain(engine)
        return [client.story for client in clients], len(session.rows)

    same = always(DraftModel(Repetitive(slots=3), vocab_size=VOCAB))
    plain, steps = run(None)
    drafted, fewer = run(same)
    assert drafted == plain and fewer < steps * (0.2 if temperature == 0 else 0.9)
    if temperature == 0:
        # A sequence that gets no draft, since it ended or a sibling's prompt is computed, has none rejected either.
        assert same.totals.accepted == same.totals.drafted > 200
    assert run(Speculation(DraftModel(Repetitive(slots=3), vocab_size=VOCAB)))[0] == plain


def test_what_drafting_takes_is_measured() -> None:
    drafter = DraftModel(Repetitive(slots=1), vocab_size=VOCAB)
    assert drafter.seconds == 0
    drafter.draft([Wanted(slot=0, ids=[1, 2], count=3)])
    assert 0 < drafter.seconds < 10
    assert np.isfinite(drafter.seconds)
