"""Checked against transformers' own processors where it is installed, and against definitions written out here."""

import click
import numpy as np
import pytest
from click.testing import CliRunner

from megrez.runtime.commands.options import chosen_sampling, sampling_options
from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.manifest import SamplingDefaults
from megrez.runtime.sampling import Sampler, SamplingParams, candidates, penalized

VOCAB = 500


def logits_of(seed: int, size: int = VOCAB, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def distribution(scores: np.ndarray, params: SamplingParams) -> np.ndarray:
    ids, weights = candidates(scores, params)
    dense = np.zeros(len(scores))
    dense[ids] = weights / weights.sum(dtype=np.float64)
    return dense


FILTERS = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_filters_leave_transformers_distribution(options, seed):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    chain = [warpers.TemperatureLogitsWarper(options["temperature"])]
    chain += [warpers.TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    chain += [warpers.TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    chain += [warpers.MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    scores = logits_of(seed)
    expected = torch.from_numpy(scores)[None]
    for warper in chain:
        expected = warper(None, expected)
    ours = distribution(scores, SamplingParams(**options))
    np.testing.assert_allclose(ours, expected.softmax(-1)[0].numpy(), atol=1e-6)


def test_top_p_counts_a_long_flat_tail():
    # One token of weight 1 and 50,000 of weight 5e-5: the tail holds 2.5 of 3.5, so top_p 0.9 needs most of it.
    scores = np.log(np.array([1.0, *[5e-5] * 50_000], np.float64)).astype(np.float32)
    kept, _ = candidates(scores, SamplingParams(temperature=1.0, top_p=0.9))
    assert len(kept) == pytest.approx(1 + (0.9 * 3.5 - 1) / 5e-5, rel=1e-3)


def test_repetition_penalty_is_transformers(seed=0):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    scores, context = logits_of(seed), [3, 3, 5, 250, 499]
    expected = warpers.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([context]), torch.from_numpy(scores.copy())[None]
    )
    seen = np.zeros(VOCAB, bool)
    seen[context] = True
    ours = penalized(scores, SamplingParams(repetition_penalty=1.3), seen=seen, counts=np.zeros(VOCAB, np.int32))
    np.testing.assert_allclose(ours, expected[0].numpy(), rtol=1e-6)


def test_presence_and_frequency_follow_openais_formula():
    # platform.openai.com: mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    scores, counts = logits_of(1), np.zeros(VOCAB, np.int32)
    counts[[2, 9]] = 3, 1
    ours = penalized(
        scores,
        SamplingParams(frequency_penalty=0.5, presence_penalty=0.25),
        seen=np.ones(VOCAB, bool),
        counts=counts,
    )
    expected = [s - int(c) * 0.5 - float(c > 0) * 0.25 for s, c in zip(scores.tolist(), counts, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_logit_bias_is_added_before_all_else_as_transformers_adds_it():
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    scores, bias = logits_of(7), {3: 5.0, 416: -100.0, 499: 0.5}
    before = scores.copy()
    added = warpers.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    expected = added(torch.tensor([[1]]), torch.from_numpy(scores.copy())[None])
    assert int(expected.argmax()) != scores.argmax()
    assert Sampler(SamplingParams(logit_bias=bias), [], VOCAB).pick(scores) == int(expected.argmax())
    np.testing.assert_array_equal(scores, before)


def test_a_biased_draw_has_the_frequencies_of_the_biased_softmax():
    scores = np.zeros(3, np.float32)
    sampler = Sampler(SamplingParams(temperature=2.0, seed=0, logit_bias={0: 2.0, 2: -100}), [], 3)
    drawn = np.bincount([sampler.pick(scores) for _ in range(20_000)], minlength=3) / 20_000
    # The bias is divided by the temperature: e to 1.
    np.testing.assert_allclose(drawn, [np.e / (np.e + 1), 1 / (np.e + 1), 0], atol=0.015)


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(UsageError, match="token id 500, the vocabulary has 500"):
        Sampler(SamplingParams(logit_bias={500: 1.0}), [], VOCAB)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--logit-bias", "4=-5", "--logit-bias", "7=0.5"], {4: -5.0, 7: 0.5}),
        ([], None),
        (["--logit-bias", "4"], 2),
        (["--logit-bias", "a=1"], 2),
    ],
)
def test_the_option_collects_token_ids_and_values(words, found):
    seen = []

    @click.command()
    @sampling_options
    def command() -> None:
        seen.append(chosen_sampling(SamplingParams()).logit_bias)

    code = CliRunner().invoke(command, words).exit_code
    assert (seen, code) == (([], 2) if found == 2 else ([found], 0))


def test_presence_counts_only_what_was_generated_but_repetition_counts_the_prompt_too():
    scores = np.array([2.0, 1.9, 0.0], np.float32)
    assert Sampler(SamplingParams(presence_penalty=1.0), [0], 3).pick(scores) == 0
    assert Sampler(SamplingParams(repetition_penalty=2.0), [0], 3).pick(scores) == 1
    greedy = Sampler(SamplingParams(presence_penalty=1.0), [], 3)
    assert [greedy.pick(scores) for _ in range(2)] == [0, 1]


def test_frequency_grows_with_every_use():
    scores = np.array([2.0, 0.0], np.float32)
    sampler = Sampler(SamplingParams(frequency_penalty=0.75), [], 2)
    # 2.0, 1.25 and 0.5 stay above 0; -0.25 does not.
    assert [sampler.pick(scores) for _ in range(4)] == [0, 0, 0, 1]


def test_penalties_do_not_write_to_the_engines_buffer():
    scores = logits_of(2)
    before = scores.copy()
    sampler = Sampler(SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0), [1, 2], VOCAB)
    for _ in range(3):
        sampler.pick(scores)
    np.testing.assert_array_equal(scores, before)


def test_draws_have_the_frequencies_of_the_softmax():
    scores = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0), [], 3)
    drawn = np.bincount([sampler.pick(scores) for _ in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.2], atol=0.015)


def test_a_seed_fixes_the_draws_and_another_changes_them():
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [], VOCAB)
        return [sampler.pick(logits_of(3, scale=0.1)) for _ in range(8)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_ties_at_the_top_k_border_stay():
    kept, _ = candidates(np.array([1, 3, 2, 2, 0], np.float32), SamplingParams(temperature=1.0, top_k=2))
    assert kept.tolist() == [1, 2, 3]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    scores = logits_of(4)
    with np.errstate(over="raise", invalid="raise"):
        assert Sampler(SamplingParams(temperature=1e-38, seed=0), [], VOCAB).pick(scores) == scores.argmax()


def test_masked_logits_are_never_drawn():
    scores = np.full(4, -np.inf, np.float32)
    scores[2] = -5.0
    sampler = Sampler(SamplingParams(temperature=2.0, seed=0), [], 4)
    assert {sampler.pick(scores) for _ in range(20)} == {2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_engine_error(bad, temperature):
    scores = logits_of(5)
    scores[17] = bad
    with pytest.raises(EngineError, match="finite"):
        Sampler(SamplingParams(temperature=temperature), [], VOCAB).pick(scores)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"seed": -1},
        {"logit_bias": {1: 100.5}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {-1: 1.0}},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        SamplingParams(**options)


def test_all_faults_are_reported_at_once():
    with pytest.raises(UsageError, match=r"top_k=-2.*top_p=7"):
        SamplingParams(top_k=-2, top_p=7)


def test_defaults_come_from_the_manifest():
    defaults = SamplingDefaults(temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, repetition_penalty=1.02)
    assert SamplingParams.from_defaults(defaults) == SamplingParams(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, repetition_penalty=1.02
    )


def test_of_a_peaked_row_of_megrez_vocabulary_only_the_heavy_tokens_are_sorted(monkeypatch):
    scores = logits_of(6, size=122_880)
    sampler = Sampler(SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.02, seed=0), range(4096), 122_880)
    sorted_at_once, argsort = [], np.argsort

    def counting(values, **options):
        sorted_at_once.append(len(values))
        return argsort(values, **options)

    monkeypatch.setattr(np, "argsort", counting)
    sampler.pick(scores)
    assert len(sorted_at_once) == 1 and 0 < sorted_at_once[0] < 122_880 // 20
