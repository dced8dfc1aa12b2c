from types import SimpleNamespace

import numpy as np
import pytest

from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.generate import generate
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.session import FakeSession

GREEDY = SamplingParams()


def naive(prompt: list[int], vocab_size: int, count: int) -> list[int]:
    """What FakeSession promises, without a cache: each token is the sum of all before it."""
    context = list(prompt)
    for _ in range(count):
        context.append(sum(context) % vocab_size)
    return context[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8, 512])
@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_tokens_do_not_depend_on_the_chunk(chunk, length):
    prompt = list(range(3, 3 + length))
    session = FakeSession(vocab_size=29)
    steps = list(generate(session, prompt, GREEDY, stop_ids=(), max_tokens=6, chunk=chunk))
    assert [step.token for step in steps] == naive(prompt, 29, 6)
    assert [step.finish_reason for step in steps] == [None] * 5 + ["length"]


def test_only_the_prompts_last_row_is_asked_for(scripted):
    session = scripted([5, 6])
    list(generate(session, [1, 2, 3, 4, 5], GREEDY, stop_ids=(), max_tokens=2, chunk=2))
    assert session.steps == [([1, 2], 0, []), ([3, 4], 2, []), ([5], 4, [0]), ([5], 5, [0])]


def test_the_last_token_is_not_fed_back(scripted):
    session = scripted([5, 6, 7])
    list(generate(session, [1, 2], GREEDY, stop_ids=(), max_tokens=1))
    assert len(session.steps) == 1


@pytest.mark.parametrize("stop", [6, 7])
def test_any_stop_id_ends_and_is_the_last_token(scripted, stop):
    steps = list(generate(scripted([5, stop, 8]), [1, 2], GREEDY, stop_ids={6, 7}, max_tokens=9))
    assert [(step.token, step.finish_reason) for step in steps] == [(5, None), (stop, "stop")]


def test_a_stop_id_as_the_last_allowed_token_counts_as_stop(scripted):
    assert list(generate(scripted([6]), [1, 2], GREEDY, stop_ids={6}, max_tokens=1))[-1].finish_reason == "stop"


@pytest.mark.parametrize(("prompt", "max_tokens", "expected"), [(60, 100, 5), (64, 100, 1), (60, None, 5), (60, 3, 3)])
def test_the_context_bounds_the_output(prompt, max_tokens, expected):
    session = FakeSession(vocab_size=29, capacity=64)
    steps = list(generate(session, [1] * prompt, GREEDY, stop_ids=(), max_tokens=max_tokens))
    assert len(steps) == expected
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [
        ([1] * 65, 1, "65 tokens, the context holds 64"),
        ([], 1, "empty"),
        ([1], 0, "max_tokens of 1 or more"),
        ([1, 29], 1, "29 is outside"),
        ([-1], 1, "-1 is outside"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_any_step(scripted, prompt, max_tokens, said):
    session = scripted([1], vocab_size=29)
    with pytest.raises(UsageError, match=said):
        generate(session, prompt, GREEDY, stop_ids=(), max_tokens=max_tokens)
    assert session.steps == []


def test_an_engines_error_passes_through():
    class Dead(FakeSession):
        def step(self, *batch, **named):
            raise EngineError("the device is gone")

    with pytest.raises(EngineError, match="device is gone"):
        next(generate(Dead(vocab_size=9), [1], GREEDY, stop_ids=()))


def test_timings_hold_the_engines_time_and_not_the_readers(monkeypatch):
    class Slow(FakeSession):
        def step(self, tokens, *batch, **named):
            clock.now += 0.5 * len(tokens)
            return super().step(tokens, *batch, **named)

    clock = SimpleNamespace(now=64.0)
    monkeypatch.setattr("megrez.runtime.generate.time", SimpleNamespace(perf_counter=lambda: clock.now))
    seconds = []
    for step in generate(Slow(vocab_size=9), [1, 2, 3], GREEDY, stop_ids=(), max_tokens=3):
        seconds.append(step.seconds)
        clock.now += 8
    assert seconds == [1.5, 0.5, 0.5]


def test_a_seeded_draw_repeats():
    def draw() -> list[int]:
        session = FakeSession(vocab_size=200)
        params = SamplingParams(temperature=1.0, seed=11)
        return [step.token for step in generate(session, [1, 2], params, stop_ids=(), max_tokens=10)]

    assert draw() == draw()


def test_the_fake_session_refuses_what_does_not_fit_and_returns_no_rows_unasked():
    session = FakeSession(vocab_size=9, capacity=4)
    none = session.step(np.zeros((1, 3), np.int64), np.zeros(1, np.int32), np.zeros(0, np.int64))
    assert none.shape == (0, 9)
    with pytest.raises(UsageError, match="more were given, the context holds 4"):
        session.step(np.zeros((1, 3), np.int64), np.array([2], np.int32), np.zeros(0, np.int64))
