"""What a request gets with drafts, right and wrong ones, against what it gets without, over all options."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from megrez.runtime.errors import EngineError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.drafting.lookup import PromptLookup
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Request, Token
from tests.runtime.serving.drafting.speculating import VOCAB, Client, Fixed, Repetitive, always, drain


class Letters:
    """A detokenizer: every token is a letter."""

    def push(self, token: int) -> str:
        return "abcdefghijklmnop"[token]

    def flush(self) -> str:
        return "!"


def engine_over(speculation: Speculation | None, *, slots: int = 3, capacity: int = 96) -> Engine:
    session = Repetitive(slots=slots, capacity=capacity)
    return Engine(
        session,
        stop_ids=(3,),
        chunk=16,
        mixed_chunk=4,
        detokenizer=lambda prompt: Letters(),
        speculation=speculation,
    )


def oracle(ids: Any) -> list[int]:
    """The greedy continuation, wrong at every fourth position."""
    session, found = Repetitive(slots=1), list(ids)
    for _ in range(6):
        token = int(session.logits_after(found).argmax())
        found.append((token + 1) % VOCAB if len(found) % 4 == 3 else token)
    return found[len(ids) :]


DRAFTERS = {
    "lookup": lambda: always(PromptLookup()),
    "adaptive lookup": lambda: Speculation(PromptLookup()),
    "oracle": lambda: always(Fixed(oracle)),
    "adaptive oracle": lambda: Speculation(Fixed(oracle)),
    "wrong": lambda: always(Fixed(lambda ids: [0, 1, 2])),
}
OPTIONS: dict[str, Any] = {
    "temperature": lambda draw: draw.choice([0.0, 0.4, 1.0, 3.0]),
    "top_k": lambda draw: draw.randrange(6),
    "top_p": lambda draw: draw.choice([0.5, 1.0]),
    "min_p": lambda draw: draw.choice([0.0, 0.1]),
    "repetition_penalty": lambda draw: draw.choice([1.0, 1.3]),
    "presence_penalty": lambda draw: draw.choice([-1.0, 0.7]),
    "frequency_penalty": lambda draw: draw.choice([0.0, 0.3]),
    "logit_bias": lambda draw: {draw.randrange(VOCAB): draw.uniform(-5, 5)},
    "n": lambda draw: draw.randint(1, 3),
    "stop": lambda draw: ["".join(draw.choices("abcdefgh", k=draw.randint(1, 3))) for _ in range(2)],
    "stop_token_ids": lambda draw: [draw.randrange(VOCAB)],
    "ignore_eos": lambda draw: draw.random() < 0.7,
    "logprobs": lambda draw: draw.randrange(4),
    "prompt_logprobs": lambda draw: draw.randrange(3),
}


def draw_asks(draw: random.Random) -> list[Any]:
    """Up to four requests: the prompt, a few options, the least and the most tokens, and the steps until the next."""
    asks = []
    for _ in range(draw.randint(1, 4)):
        options = {name: OPTIONS[name](draw) for name in draw.sample(list(OPTIONS), draw.randint(0, 5))}
        prompt = draw.choices(range(VOCAB), k=draw.choice([1, 5, 20, 40]))
        most = draw.randint(1, 56)
        asks.append((prompt, options, most, draw.randint(0, min(most, 10)), draw.randrange(4)))
    return asks


def stories(speculation: Speculation | None, asks: list[Any]) -> list[Any]:
    engine = engine_over(speculation)
    clients = []
    for seed, (prompt, options, most, least, steps) in enumerate(asks):
        clients.append(Client(engine, prompt, seed=seed, max_tokens=most, min_tokens=least, **options))
        for _ in range(steps):
            engine.step()
    drain(engine)
    assert engine.slots.free == 3
    return [client.story for client in clients]


@pytest.mark.parametrize("name", DRAFTERS)
def test_whatever_is_drafted_every_request_gets_the_same(name: str) -> None:
    for seed in range(30):
        asks = draw_asks(random.Random(seed))
        assert stories(DRAFTERS[name](), asks) == stories(None, asks), asks


def test_drafts_save_steps_and_are_counted() -> None:
    plain = engine_over(None)
    without = Client(plain, [1, 2], max_tokens=60, ignore_eos=True)
    drain(plain)
    speculation = always(Fixed(oracle))
    engine = engine_over(speculation)
    client = Client(engine, [1, 2], max_tokens=60, ignore_eos=True)
    drain(engine)
    assert isinstance(engine.session, Repetitive) and isinstance(plain.session, Repetitive)
    assert client.story == without.story
    # One of four drafted tokens is wrong, and a step's own token corrects it.
    assert len(engine.session.rows) == pytest.approx(len(plain.session.rows) / 4, abs=2)
    totals = speculation.totals
    rows = engine.session.rows[1:]  # none with the prompt
    assert totals.drafts == sum(count > 1 for count in rows)
    assert totals.drafted == sum(rows) - len(rows)
    assert totals.accepted == 60 - len(engine.session.rows)
    assert (client.last.drafted_tokens, client.last.accepted_tokens) == (totals.drafted, totals.accepted)


def test_sampled_output_keeps_its_distribution() -> None:
    """Pearson's chi-squared test of the second and third token, against the probabilities that the logits give."""
    drawn: Counter[tuple[int, int]] = Counter()
    engine = engine_over(always(Fixed(lambda ids: [(ids[-1] + 1) % VOCAB, 4])), slots=8)
    clients = [
        Client(engine, [1, 2], seed=seed, temperature=2.0, max_tokens=3, ignore_eos=True) for seed in range(1500)
    ]
    drain(engine)
    drawn.update((client.ids[0], client.ids[1]) for client in clients)
    session = engine.session
    assert isinstance(session, Repetitive)

    def probabilities(context: list[int]) -> np.ndarray:
        weights = np.exp(session.logits_after(context).astype(np.float64) / 2)
        return weights / weights.sum()

    first = probabilities([1, 2])
    expected = {
        (one, two): 1500 * first[one] * second
        for one in range(VOCAB)
        for two, second in enumerate(probabilities([1, 2, one]))
    }
    common = [pair for pair, count in expected.items() if count >= 5]
    rest = 1500 - sum(expected[pair] for pair in common)
    off = sum((drawn[pair] - expected[pair]) ** 2 / expected[pair] for pair in common)
    off += (1500 - sum(drawn[pair] for pair in common) - rest) ** 2 / rest
    freedom = len(common)
    # Seeds are fixed, so this never fails by chance; 3.1 standard deviations are a probability of 0.001.
    assert freedom > 20 and off < freedom + 3.1 * math.sqrt(2 * freedom)


def test_a_draft_ends_where_the_output_or_the_slot_does() -> None:
    engine = engine_over(always(Fixed(lambda ids: [0] * 15)), capacity=20, slots=1)
    client = Client(engine, [1] * 12, ignore_eos=True)
    drain(engine)
    plain = engine_over(None, capacity=20, slots=1)
    other = Client(plain, [1] * 12, ignore_eos=True)
    drain(plain)
    assert client.story == other.story and len(client.ids) == 9


def test_a_request_cancelled_among_drafted_tokens_hears_no_more() -> None:
    speculation = always(Fixed(oracle))
    engine = engine_over(speculation, slots=1)
    heard: list[int] = []

    def sink(found: Token | Exception) -> None:
        assert isinstance(found, Token)
        heard.append(found.token)
        if len(heard) == 3:
            raise RuntimeError("gone")

    engine.add(Request(prompt_ids=[1, 2], params=SamplingParams(max_tokens=50, ignore_eos=True), sink=sink))
    follower = Client(engine, [1, 2], max_tokens=20, ignore_eos=True)
    drain(engine)
    assert len(heard) == 3
    plain = engine_over(None, slots=1)
    alone = Client(plain, [1, 2], max_tokens=20, ignore_eos=True)
    drain(plain)
    assert follower.story == alone.story
    assert heard == alone.ids[:3]


def test_the_slot_holds_accepted_tokens_for_the_next_prompt_and_no_rejected_ones() -> None:
    engine = engine_over(always(Fixed(oracle)), slots=1)
    first = Client(engine, [1, 2], max_tokens=30, ignore_eos=True)
    drain(engine)
    session = engine.session
    assert isinstance(session, Repetitive)
    held = engine.slots.tokens[0]
    assert held == [1, 2, *first.ids][: len(held)] and len(held) >= 31
    assert session.cache[0, : len(held)].tolist() == held


def test_a_drafter_that_fails_is_left_out_from_then_on() -> None:
    class Broken(Fixed):
        def draft(self, wanted: Any) -> Any:
            raise EngineError("no memory")

    drafter = Broken(lambda ids: [1])
    engine = engine_over(always(drafter))
    client = Client(engine, [1, 2], max_tokens=20, ignore_eos=True)
    drain(engine)
    assert len(client.ids) == 20 and drafter.is_closed


def test_slots_are_released_when_their_sequences_end() -> None:
    drafter = Fixed(oracle)
    engine = engine_over(always(drafter), slots=2)
    ended = Client(engine, [1, 2], max_tokens=5, ignore_eos=True)
    cancelled = Client(engine, [2, 2], max_tokens=50, ignore_eos=True)
    engine.step()
    engine.cancel(cancelled.request.number)
    drain(engine)
    assert len(ended.ids) == 5 and sorted(drafter.released) == [0, 1]
