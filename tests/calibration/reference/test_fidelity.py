"""Figures over windows and steps equal those computed at once, in float64, from the same logits."""

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from megrez.calibration.reference import fidelity
from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.runtime.batch import Batch
from megrez.runtime.session import Logits

VOCAB, COUNT = 50, 150
IDS = np.random.default_rng(0).integers(0, VOCAB, COUNT)


class TableSession:
    """A Session whose logits are rows of a table, by the number of tokens since its cache was empty."""

    slots, vocab_size, capacity = 1, VOCAB, COUNT

    def __init__(self, table: NDArray[np.float32], window: int) -> None:
        self.table, self.window = table, window
        self.starts = -window
        self.positions: list[int] = []

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        batch = Batch.of(tokens, starts, logits_index, slots, counts, max_slots=1, capacity=self.capacity)
        if batch.starts[0] == 0:
            self.starts += self.window
        at = self.starts + int(batch.starts[0])
        np.testing.assert_array_equal(batch.tokens, IDS[at : at + len(batch.tokens)])
        self.positions += (at + batch.logits_index).tolist()
        return self.table[at + batch.logits_index]

    def copy(self, source: int, target: int, length: int) -> None:
        raise AssertionError("fidelity copies no slot")

    def close(self) -> None:
        pass


def tables() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of a model and its reference: near each other, far in places, with offsets that only log-softmax removes."""
    random = np.random.default_rng(1)
    truth = random.normal(0, 3, (COUNT, VOCAB))
    model = truth + random.normal(0, 0.3, truth.shape) + random.normal(0, 50, (COUNT, 1))
    model[::40] = random.normal(0, 3, (len(model[::40]), VOCAB))
    return model.astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("window", [20, 32, 64, 150, 1000])
@pytest.mark.parametrize("positions", [1, 7, 40])
def test_every_figure(window: int, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "STEP_LOGITS", positions * VOCAB)
    model, truth = tables()
    sessions = TableSession(model, window), TableSession(truth, window)
    done: list[int] = []
    found = measure_fidelity(*sessions, IDS, window=window, progress=done.append)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (truth, model))
    kl = (p * np.log(p / q)).sum(axis=1)
    # The last position of a window predicts a token that the next window begins with: it is not counted.
    at = np.array([i for i in range(COUNT - 1) if (i + 1) % window])
    assert found.tokens == COUNT == sum(done)
    np.testing.assert_allclose(found.kl_mean, kl.mean(), rtol=1e-9)
    ordered = np.sort(kl)
    low = int(0.99 * (COUNT - 1))
    share = 0.99 * (COUNT - 1) - low
    np.testing.assert_allclose(found.kl_p99, ordered[low] * (1 - share) + ordered[low + 1] * share, rtol=1e-9)
    np.testing.assert_allclose(found.perplexity, np.exp(-np.log(q[at, IDS[at + 1]]).mean()), rtol=1e-9)
    np.testing.assert_allclose(found.reference_perplexity, np.exp(-np.log(p[at, IDS[at + 1]]).mean()), rtol=1e-9)
    np.testing.assert_allclose(found.top1_agreement, (p.argmax(axis=1) == q.argmax(axis=1)).mean(), rtol=1e-12)
    assert all(session.positions == list(range(COUNT)) for session in sessions)


def test_a_model_is_no_distance_from_itself() -> None:
    _, truth = tables()
    found = measure_fidelity(TableSession(truth, 64), TableSession(truth, 64), IDS, window=64)
    assert (found.kl_mean, found.kl_p99, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.perplexity == found.reference_perplexity


def test_logits_of_any_size_stay_finite() -> None:
    """exp(2300) overflows; a token without any chance in the model costs its logit's distance."""
    truth = np.full((COUNT, VOCAB), 1700, np.float32)
    truth[:, 3] = 2300
    model = np.roll(truth, 1, axis=1)
    found = measure_fidelity(TableSession(model, COUNT), TableSession(truth, COUNT), IDS, window=COUNT)
    assert (found.kl_mean, found.kl_p99, found.top1_agreement) == (600.0, 600.0, 0.0)
    assert np.isfinite(found.perplexity)


def test_a_single_position_has_a_distance() -> None:
    """The last window may hold one token, which has nothing to predict."""
    model, truth = tables()
    found = measure_fidelity(TableSession(model, 149), TableSession(truth, 149), IDS, window=149)
    assert found.tokens == 150 and np.isfinite(found.perplexity)
