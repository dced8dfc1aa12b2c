"""In-flight batching over a session whose next token is the sum of all tokens before it."""

import numpy as np
import pytest

from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Request, Token
from megrez.runtime.session import FakeSession

VOCAB = 97


def alone(prompt: list[int], count: int, stop: tuple[int, ...] = ()) -> list[int]:
    """What FakeSession's rule gives, worked out without one."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(sum(ids) % VOCAB)
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


class Recorder(FakeSession):
    """Notes the counts of new tokens of each step by slot."""

    def __init__(self, **shape: int) -> None:
        super().__init__(vocab_size=VOCAB, **shape)  # type: ignore[arg-type]
        self.steps: list[dict[int, int]] = []
        self.copies: list[tuple[int, int, int]] = []
        self.fails = False

    def step(self, tokens, starts, logits_index, *, slots=None, counts=None):  # type: ignore[no-untyped-def]
        if self.fails:
            raise EngineError("out of order")
        self.steps.append(dict(zip(slots.tolist(), counts.tolist(), strict=True)))
        return super().step(tokens, starts, logits_index, slots=slots, counts=counts)

    def copy(self, source: int, target: int, length: int) -> None:
        self.copies.append((source, target, length))
        super().copy(source, target, length)


class Client:
    def __init__(self, engine: Engine, prompt: list[int], *, is_awaited: bool = True, **params: object) -> None:
        self.heard: list[Token | Exception] = []
        self.request = Request(
            prompt_ids=prompt,
            params=SamplingParams(**params),  # type: ignore[arg-type]
            sink=self.heard.append,
            is_awaited=is_awaited,
        )
        engine.add(self.request)

    def tokens(self, index: int = 0) -> list[int]:
        return [one.token for one in self.heard if isinstance(one, Token) and one.index == index]

    @property
    def reasons(self) -> list[str | None]:
        return [one.finish_reason for one in self.heard if isinstance(one, Token) and one.finish_reason]


def drain(engine: Engine, most: int = 10_000) -> None:
    for _ in range(most):
        if engine.is_idle:
            return
        engine.step()
    raise AssertionError("the engine never became idle")


def test_many_requests_each_get_what_they_get_alone() -> None:
    random = np.random.default_rng(5)
    engine = Engine(Recorder(slots=4, capacity=128), stop_ids=(13,), chunk=16, mixed_chunk=5)
    clients = []
    for _ in range(40):
        prompt = random.integers(VOCAB, size=int(random.integers(1, 60))).tolist()
        clients.append(Client(engine, prompt, max_tokens=int(random.integers(1, 30))))
        for _ in range(int(random.integers(0, 4))):
            engine.step()
    drain(engine)
    for client in clients:
        params = client.request.params
        assert params.max_tokens is not None
        assert client.tokens() == alone(client.request.prompt_ids, params.max_tokens, stop=(13,))
        assert len(client.reasons) == 1


def test_prefill_goes_in_chunks_between_the_tokens_of_others() -> None:
    session = Recorder(slots=2, capacity=256)
    engine = Engine(session, stop_ids=(), chunk=100, mixed_chunk=8)
    Client(engine, [1, 2], max_tokens=40)
    engine.step()
    long = Client(engine, list(range(30)), max_tokens=2)
    drain(engine)
    mixed = session.steps[1:5]
    assert mixed == [{0: 1, 1: 8}, {0: 1, 1: 8}, {0: 1, 1: 8}, {0: 1, 1: 6}]
    assert long.tokens() == alone(list(range(30)), 2)


def test_prompts_come_before_tokens_that_nobody_waits_for() -> None:
    session = Recorder(slots=3, capacity=256)
    engine = Engine(session, stop_ids=(), chunk=20, mixed_chunk=8)
    first = Client(engine, [1, 2], is_awaited=False, max_tokens=4)
    engine.step()
    long = Client(engine, list(range(30)), is_awaited=False, max_tokens=4)
    engine.step()
    awaited = Client(engine, [3, 4], max_tokens=4)
    for _ in range(2):
        engine.step()
    other = Client(engine, list(range(9)), is_awaited=False, max_tokens=4)
    drain(engine)
    assert session.steps[:4] == [{0: 2}, {1: 20}, {1: 10, 2: 2}, {0: 1, 1: 1, 2: 1}]
    found = [first, long, awaited, other]
    assert [one.tokens() for one in found] == [alone(one.request.prompt_ids, 4) for one in found]


def test_requests_are_served_first_come_first_served() -> None:
    session = Recorder(slots=1, capacity=64)
    engine = Engine(session, stop_ids=())
    order: list[int] = []
    for number in range(3):
        request = Request(
            prompt_ids=[number + 1],
            params=SamplingParams(max_tokens=2),
            sink=lambda found, number=number: order.append(number),  # type: ignore[misc]
        )
        engine.add(request)
    drain(engine)
    assert order == [0, 0, 1, 1, 2, 2]


def test_a_cancelled_request_frees_its_slot_before_the_next_step_wherever_it_is() -> None:
    session = Recorder(slots=1, capacity=64)
    engine = Engine(session, stop_ids=(), chunk=4, mixed_chunk=4)
    running = Client(engine, list(range(10)), max_tokens=30)
    queued, last = Client(engine, [5], max_tokens=30), Client(engine, [7, 8], max_tokens=3)
    engine.step()  # in prefill
    engine.cancel(queued.request.number)
    engine.cancel(running.request.number)
    engine.cancel(running.request.number)
    drain(engine)
    assert running.heard == [] and queued.heard == []
    assert last.tokens() == alone([7, 8], 3)
    assert engine.slots.free == 1


def test_n_sequences_share_one_prefill() -> None:
    session = Recorder(slots=3, capacity=128)
    engine = Engine(session, stop_ids=())
    prompt = list(range(40))
    client = Client(engine, prompt, n=3, max_tokens=4)
    drain(engine)
    assert [client.tokens(index) for index in range(3)] == [alone(prompt, 4)] * 3
    assert sum(sum(step.values()) for step in session.steps) == 40 + 1 + 1 + 3 * 3
    assert [(target, length) for _, target, length in session.copies] == [(1, 39), (2, 39)]


def test_seeded_sequences_of_one_prompt_differ_and_repeat() -> None:
    def draw(slots: int) -> list[list[int]]:
        session = Recorder(slots=slots, capacity=64)
        engine = Engine(session, stop_ids=())
        client = Client(engine, [3, 4], n=3, max_tokens=6, temperature=5.0, seed=11)
        drain(engine)
        return [client.tokens(index) for index in range(3)]

    found = draw(3)
    assert found == draw(1) and len({tuple(one) for one in found}) == 3


def test_stop_tokens_of_the_request_the_model_and_neither() -> None:
    engine = Engine(Recorder(slots=4, capacity=64), stop_ids=(6,))
    plain = Client(engine, [1, 2], max_tokens=9)  # 3 6
    ignoring = Client(engine, [1, 2], max_tokens=4, ignore_eos=True)
    own = Client(engine, [1, 2], max_tokens=9, ignore_eos=True, stop_token_ids=[12])
    late = Client(engine, [1, 2], max_tokens=9, min_tokens=3)
    drain(engine)
    assert plain.tokens() == [3, 6] and plain.reasons == ["stop"]
    assert ignoring.tokens() == [3, 6, 12, 24] and ignoring.reasons == ["length"]
    assert own.tokens() == [3, 6, 12] and own.reasons == ["stop"]
    assert len(late.tokens()) >= 3 and 6 not in late.tokens()[:3]


def test_logprobs_of_output_and_prompt() -> None:
    engine = Engine(Recorder(slots=1, capacity=64), stop_ids=(), chunk=3)
    client = Client(engine, [1, 2, 4, 8], max_tokens=1, logprobs=2, prompt_logprobs=1)
    drain(engine)
    (token,) = client.heard
    assert isinstance(token, Token) and token.logprobs is not None and token.prompt_logprobs is not None
    base = -np.log(np.e + VOCAB - 1)  # of a row that is 1 at one token and 0 elsewhere
    assert token.token == 15 and token.logprobs.rank == 1
    assert token.logprobs.logprob == pytest.approx(1 + base, abs=1e-6)
    assert token.logprobs.top[0] == (15, token.logprobs.logprob) and len(token.logprobs.top) == 2
    assert [one.token for one in token.prompt_logprobs] == [2, 4, 8]
    assert [one.top[0][0] for one in token.prompt_logprobs] == [1, 3, 7]
    assert [one.logprob for one in token.prompt_logprobs] == pytest.approx([base] * 3, abs=1e-6)


def test_a_failing_step_tells_all_who_ran_and_the_engine_goes_on() -> None:
    session = Recorder(slots=2, capacity=64)
    engine = Engine(session, stop_ids=())
    broken, waiting = [Client(engine, [1, 2], max_tokens=5) for _ in range(2)], Client(engine, [3], max_tokens=2)
    engine.step()
    session.fails = True
    engine.step()
    session.fails = False
    drain(engine)
    assert all(isinstance(one.heard[-1], EngineError) for one in broken)
    assert waiting.tokens() == alone([3], 2)
    assert engine.slots.free == 2


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "empty"), (list(range(65)), "65 tokens"), ([1, VOCAB], "outside the model's vocab")]
)
def test_prompts_that_cannot_be_served_are_refused_when_they_are_added(prompt: list[int], message: str) -> None:
    engine = Engine(Recorder(slots=1, capacity=64), stop_ids=())
    with pytest.raises(UsageError, match=message):
        Client(engine, prompt)
    assert engine.is_idle


def test_a_prompt_that_fills_the_context_gets_one_token() -> None:
    engine = Engine(Recorder(slots=1, capacity=8), stop_ids=())
    client = Client(engine, [1] * 8)
    drain(engine)
    assert client.tokens() == [8] and client.reasons == ["length"]


def test_a_sink_that_fails_ends_its_own_request_alone() -> None:
    engine = Engine(Recorder(slots=2, capacity=64), stop_ids=())

    def broken(found: Token | Exception) -> None:
        raise RuntimeError("gone")

    engine.add(Request(prompt_ids=[1], params=SamplingParams(max_tokens=9), sink=broken))
    other = Client(engine, [2], max_tokens=3)
    drain(engine)
    assert other.tokens() == alone([2], 3) and engine.slots.free == 2


def test_stop_tokens_outside_the_vocabulary_are_refused_before_anything_runs() -> None:
    engine = Engine(Recorder(slots=1, capacity=64), stop_ids=())
    with pytest.raises(UsageError, match=f"stop_token_ids has {VOCAB}"):
        Client(engine, [1], stop_token_ids=[3, VOCAB], min_tokens=2)
    assert engine.is_idle


def test_a_sampler_that_fails_ends_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Recorder(slots=2, capacity=64), stop_ids=())
    broken, other = Client(engine, [1], max_tokens=3), Client(engine, [2], max_tokens=3)
    engine.step()
    sampler = engine.running[0].sampler
    monkeypatch.setattr(sampler, "next", lambda logits, blocked: 1 / 0)
    drain(engine)
    assert isinstance(broken.heard[-1], ZeroDivisionError) and len(broken.heard) == 2
    assert other.tokens() == alone([2], 3)
    assert engine.slots.free == 2
