import itertools
from pathlib import Path

import pytest

from megrez.runtime.bench.dataset import Sample
from megrez.runtime.bench.settings import Load, Span
from megrez.runtime.bench.workload import WARMUP, Workload


def workload(**fields) -> Workload:
    return Workload(load=Load(**{"requests": 40, **fields}), vocab_size=50)


def lengths(asks) -> list[tuple[int, int]]:
    return [(len(ask.prompt), ask.output_tokens) for ask in asks]


def test_lengths_are_uniform_with_both_ends_and_equal_in_all_repetitions():
    made = workload(prompt_tokens=Span(3, 5), output_tokens=Span(7, 8))
    first, second = list(made.asks(0)), list(made.asks(1))
    assert lengths(first) == lengths(second)
    assert set(lengths(first)) == set(itertools.product((3, 4, 5), (7, 8)))
    assert {token for ask in first for token in ask.prompt} <= set(range(50))


def test_no_prompt_returns_in_another_repetition_or_after_the_warm_up():
    made = workload(requests=3, warmup=3, prompt_tokens=Span(20, 20))
    prompts = [tuple(ask.prompt) for repetition in (WARMUP, 0, 1, 2) for ask in made.asks(repetition)]
    assert len(set(prompts)) == 12


def test_a_seed_decides_all():
    same, other = (workload(seed=seed, request_rate=2.0, prompt_tokens=Span(3, 30)) for seed in (4, 5))
    assert list(same.asks(0)) == list(same.asks(0))
    assert lengths(same.asks(0)) != lengths(other.asks(0))


def test_arrivals_are_a_poisson_process():
    made = workload(requests=20_000, request_rate=4.0, prompt_tokens=Span(1, 1))
    at = [ask.at for ask in made.asks(0)]
    gaps = [late - early for early, late in itertools.pairwise(at)]
    assert at[0] == 0 and min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    # Of an exponential distribution both are 1 / rate; three standard errors of 20,000 gaps are 2 %.
    assert mean == pytest.approx(0.25, rel=0.02) and deviation == pytest.approx(0.25, rel=0.04)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)  # 1 / e


def test_without_a_rate_all_may_be_sent_at_once():
    assert {ask.at for ask in workload().asks(0)} == {0.0}


def test_without_a_number_of_requests_there_is_no_end():
    made = workload(requests=None, duration_s=1.0, prompt_tokens=Span(1, 1))
    assert len(list(itertools.islice(made.asks(0), 5000))) == 5000


def test_a_dataset_gives_prompts_in_its_order_and_lengths_from_where_they_are_stated():
    samples = [
        Sample(prompt="a", output_tokens=9),
        Sample(prompt="b", answer="four"),
        Sample(prompt="c"),
        Sample(prompt="d", answer=" "),
    ]
    load = Load(requests=5, dataset=Path("d"), output_tokens=None)
    made = Workload(load=load, vocab_size=50, samples=samples, count_tokens=lambda text: len(text.strip()))
    assert [(ask.prompt, ask.output_tokens) for ask in made.asks(0)] == [
        ("a", 9), ("b", 4), ("c", 128), ("d", 1), ("a", 9),
    ]  # fmt: skip
    unknown = Workload(load=load, vocab_size=50, samples=samples)
    assert [ask.output_tokens for ask in unknown.asks(0)] == [9, 128, 128, 128, 9]
    fixed = Workload(load=Load(requests=3, dataset=Path("d"), output_tokens=Span(6, 6)), vocab_size=50, samples=samples)
    assert [ask.output_tokens for ask in fixed.asks(0)] == [6, 6, 6]
