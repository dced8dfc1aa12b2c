from types import SimpleNamespace

import numpy as np
import pytest

from megrez.runtime.bench.latency import Run, measure, summarise_runs
from megrez.runtime.errors import UsageError
from megrez.runtime.session import FakeSession


class Slow(FakeSession):
    def __init__(self) -> None:
        super().__init__(vocab_size=50)
        self.fed: list[int] = []
        self.now = 64.0

    def step(self, tokens, *batch, **named):
        self.fed.append(len(tokens))
        self.now += 0.25
        return super().step(tokens, *batch, **named)


def test_speeds_are_tokens_over_the_time_of_their_phase(monkeypatch):
    session = Slow()
    monkeypatch.setattr("megrez.runtime.generate.time", SimpleNamespace(perf_counter=lambda: session.now))
    runs = list(measure(session, prompt_tokens=20, output_tokens=5, repeat=2))
    assert session.fed == [20, 1, 1, 1, 1] * 3
    assert runs == [Run(ttft_s=0.25, prefill_tokens_per_s=80, decode_tokens_per_s=4)] * 2


def test_several_slots_read_their_prompts_one_by_one_and_decode_together():
    class Noted(FakeSession):
        def step(self, tokens, starts, logits_index, *, slots=None, counts=None):
            asked.append((np.size(tokens), np.asarray(starts).tolist(), None if slots is None else list(slots)))
            return super().step(tokens, starts, logits_index, slots=slots, counts=counts)

    asked = []
    session = Noted(vocab_size=50, slots=3)
    (run,) = measure(session, prompt_tokens=20, output_tokens=4, repeat=1)
    expected = [(20, [0], [slot]) for slot in range(3)] + [(3, [20 + at] * 3, None) for at in range(3)]
    assert asked == expected * 2
    prompt = session.cache[0, :20]
    for held in session.cache:  # all streams are the same one
        assert held[20:23].tolist() == [prompt.sum() * 2**at % 50 for at in range(3)]
    assert run.prefill_tokens_per_s == pytest.approx(60 / run.ttft_s)


def test_what_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(UsageError, match="60 prompt and 6 output tokens do not fit the context of 64"):
        measure(FakeSession(vocab_size=9), prompt_tokens=60, output_tokens=6, repeat=1)
    assert len(list(measure(FakeSession(vocab_size=9), prompt_tokens=60, output_tokens=5, repeat=1))) == 1


def test_medians_stand_before_their_repetitions_and_spread():
    runs = [Run(prefill_tokens_per_s=speed, decode_tokens_per_s=10, ttft_s=0.5) for speed in (80, 100, 90)]
    found = summarise_runs(runs)
    assert (found["prefill_tokens_per_s"], found["decode_tokens_per_s"], found["ttft_s"]) == (90, 10, 0.5)
    assert found["spread"] == {"prefill_tokens_per_s": 20 / 90, "decode_tokens_per_s": 0, "ttft_s": 0}
    assert [one["prefill_tokens_per_s"] for one in found["repetitions"]] == [80, 100, 90]
