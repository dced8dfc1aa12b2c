"""Self-generated text: sampled by the model's probabilities, reproducibly, and kept until a calibration is done."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from megrez.calibration.results.record import read_record
from megrez.compile.calibrate.self_generated import BATCH, LEAST_PIECE, SOURCE, pieces_of_sample, sample_tokens
from megrez.runtime.bundle import open_bundle
from megrez.runtime.session import FakeSession, Logits

TEXT = ("--calib-samples", 3, "--calib-tokens", 16, "--fidelity-tokens", 32)


class Certain(FakeSession):
    """Leaves no doubt about its next token: the sum of all before it."""

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        return super().step(tokens, starts, logits_index, slots=slots, counts=counts) * np.float32(1000)


class Odds(FakeSession):
    """Whatever its tokens are, the next has these odds."""

    odds = np.array([0.5, 0.0, 0.3, 0.15, 0.05])

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        with np.errstate(divide="ignore"):
            return np.tile(np.log(self.odds).astype(np.float32) + 7, (np.size(logits_index), 1))


def test_every_token_follows_from_all_before_it() -> None:
    tokens = sample_tokens(Certain(vocab_size=101, slots=4), 12, bos=None, stop=(), seed=3)
    assert tokens.shape == (4, 12) and len(set(tokens[:, 0])) > 1
    for at in range(1, 12):
        np.testing.assert_array_equal(tokens[:, at], tokens[:, :at].sum(axis=1) % 101)


def test_rows_begin_with_bos_where_the_model_wants_one() -> None:
    tokens = sample_tokens(Certain(vocab_size=101, slots=4), 12, bos=7, stop=(), seed=3)
    assert set(tokens[:, 0]) == {7} and len(set(tokens[:, 1])) > 1
    np.testing.assert_array_equal(tokens[:, 2], (7 + tokens[:, 1]) % 101)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    session = Odds(vocab_size=5, slots=4000)
    drawn = sample_tokens(session, 6, bos=None, stop=(), seed=1)[:, 1:]
    found = np.bincount(drawn.reshape(-1), minlength=5) / drawn.size
    assert found[1] == 0
    assert (np.abs(found - session.odds) <= 4 * np.sqrt(session.odds * (1 - session.odds) / drawn.size)).all()


def test_a_row_does_not_stop() -> None:
    drawn = sample_tokens(Odds(vocab_size=5, slots=500), 6, bos=None, stop=(0, 3), seed=1)[:, 1:]
    assert set(drawn.reshape(-1)) == {2, 4}


@pytest.mark.parametrize(
    ("samples", "length", "pieces"),
    [(4, 512, 4), (1, 512, 4), (8, 256, 2), (16, 512, 2), (32, 512, 1), (17, 512, 1), (4, 511, 1), (4, 129, 1)],
)
def test_few_samples_are_joined_from_pieces(samples: int, length: int, pieces: int) -> None:
    assert pieces_of_sample(samples, length) == pieces
    assert pieces == 1 or (samples * pieces <= BATCH and length // pieces >= LEAST_PIECE)


def test_joined_samples_have_the_length_that_was_asked_for(
    checkpoint_of: Any, megrez: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megrez.compile.calibrate.self_generated.LEAST_PIECE", 8)
    code, _, err = megrez("calibrate", checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "scales.json", *TEXT)
    assert code == 0, err
    stated = read_record(tmp_path / "scales.json").text
    assert (stated.samples, stated.tokens) == (3, 16)


def test_a_cpu_target_is_calibrated_on_it_by_default(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    folder = checkpoint_of()
    found = []
    for name, options in (("a", ()), ("again", ()), ("other", ("--calib-seed", 5))):
        done = megrez_compile(folder, "--target", "cpu-int4", "-o", tmp_path / name, *TEXT, *options)
        assert done.code == 0, done.err
        manifest = open_bundle(tmp_path / name).manifest
        assert manifest.provenance.calibration is not None and manifest.measured is not None
        assert manifest.provenance.calibration.source == SOURCE
        assert manifest.measured.text.startswith("pydoc_data.topics")
        found.append(manifest.provenance.calibration.sha256)
    assert found[0] == found[1] != found[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "again", "other"]


def test_scales_hold_the_head_and_leave_no_generated_text(
    checkpoint_of: Any, megrez: Any, megrez_compile: Any, tmp_path: Path
) -> None:
    folder, scales = checkpoint_of(), tmp_path / "scales.json"
    code, _, err = megrez("calibrate", folder, "--target", "cpu-int4", "-o", scales, *TEXT)
    assert code == 0, err
    record = read_record(scales)
    assert "lm_head" in record.groups and record.text.source == SOURCE
    assert not list(tmp_path.glob("*.npy"))
    build = ("--target", "cpu-int4", *TEXT)
    assert megrez_compile(folder, *build, "-o", tmp_path / "from", "--scales", scales).code == 0
    assert megrez_compile(folder, *build, "-o", tmp_path / "own").code == 0
    ours, own = ((tmp_path / name / "model.onnx.data").read_bytes() for name in ("from", "own"))
    assert ours == own


def test_an_interrupted_calibration_finds_its_text_again(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = (checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", *TEXT)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("megrez.compile.calibrate.prepare.calibrate_checkpoint", interrupted)
        megrez_compile(*build)
    (kept,) = tmp_path.glob("*.npy")
    assert np.load(kept).shape == (3, 16)
    with monkeypatch.context() as patched:
        patched.setattr("megrez.compile.calibrate.self_generated.sample_tokens", interrupted)
        assert megrez_compile(*build).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
