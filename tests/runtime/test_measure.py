import time

import pytest

from megrez.runtime.errors import UsageError
from megrez.runtime.measure import measure, peak_rss_bytes
from megrez.runtime.session import FakeSession


class Slow(FakeSession):
    def __init__(self) -> None:
        super().__init__(vocab_size=50)
        self.fed: list[int] = []

    def step(self, tokens, *batch, **named):
        self.fed.append(len(tokens))
        time.sleep(0.01)
        return super().step(tokens, *batch, **named)


def test_speeds_are_tokens_over_the_time_of_their_phase():
    session = Slow()
    runs = measure(session, prompt_tokens=20, output_tokens=5, repeat=2)
    assert len(runs) == 2
    assert session.fed == [20, 1, 1, 1, 1] * 3
    for run in runs:
        assert 0.01 <= run.ttft_s < 0.03
        assert run.prefill_tokens_per_s == pytest.approx(20 / run.ttft_s)
        assert 40 < run.decode_tokens_per_s <= 100


def test_what_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(UsageError, match="60 prompt and 6 output tokens do not fit the context of 64"):
        measure(FakeSession(vocab_size=9), prompt_tokens=60, output_tokens=6, repeat=1)
    assert len(measure(FakeSession(vocab_size=9), prompt_tokens=60, output_tokens=5, repeat=1)) == 1


def test_peak_memory_sees_a_large_buffer():
    before = peak_rss_bytes()
    size = before + (64 << 20)
    buffer = bytearray(size)
    buffer[::4096] = b"x" * len(buffer[::4096])
    assert peak_rss_bytes() >= size
