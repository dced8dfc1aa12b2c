import numpy as np
import pytest

from megrez.runtime.bench.settings import Load, Span
from megrez.runtime.errors import UsageError


def test_a_span_is_one_number_or_two():
    assert Span.parse("128") == Span(128, 128) and Span.parse("64:256") == Span(64, 256)
    assert [str(Span.parse(text)) for text in ("128", "64:256", "7:7")] == ["128", "64:256", "7"]


@pytest.mark.parametrize("text", ["", "0", "-3", "8:4", "a", "1:b", ":5", "1:2:3", "1.5"])
def test_what_is_no_number_of_tokens_is_named(text):
    with pytest.raises(UsageError, match="is no number of tokens"):
        Span.parse(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "has no end"),
        ({"requests": 3, "concurrency": None}, "at once"),
        ({"requests": 3, "chat": True}, "give --dataset"),
    ],
)
def test_a_load_that_means_nothing_is_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        Load(**fields)


def test_a_mean_and_a_deviation_are_a_normal_distribution_without_its_tails():
    span = Span.parse("100~20")
    assert (span.low, span.high, str(span), span.is_fixed) == (20, 180, "100~20", False)
    drawn = [span.draw(np.random.default_rng([0, n])) for n in range(2000)]
    assert np.mean(drawn) == pytest.approx(100, abs=2) and np.std(drawn) == pytest.approx(20, abs=1.5)
    assert Span.parse("4~9").low == 1 and min(Span.parse("4~9").draw(np.random.default_rng(n)) for n in range(99)) == 1


@pytest.mark.parametrize("text", ["100~0", "0~5", "~5", "5~", "1~2~3"])
def test_what_is_no_distribution_is_refused(text):
    with pytest.raises(UsageError, match="mean and deviation as 128~32"):
        Span.parse(text)
