"""Dummy weights have the config's shape, sane statistics and values that depend on seed and name alone."""

from pathlib import Path

import numpy as np

from megrez.compile.checkpoint.dummy import DummyCheckpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from tests.models import make_checkpoint


def dummy(folder: Path, *, seed: int = 0, layers: int | None = None) -> DummyCheckpoint:
    return DummyCheckpoint(folder / "config.json", source="tiny", seed=seed, layers=layers)


def test_every_tensor_has_its_shape(tmp_path: Path) -> None:
    checkpoint = dummy(make_checkpoint(tmp_path, family="qwen2"))
    checkpoint.check()
    for name, shape in expected_tensors(checkpoint.config).items():
        values = checkpoint.read(name)
        assert values.shape == shape
        assert values.dtype == np.float32


def test_statistics(tmp_path: Path) -> None:
    checkpoint = dummy(make_checkpoint(tmp_path))
    values = checkpoint.read("model.embed_tokens.weight")
    assert abs(values.std() - 0.02) < 0.0005
    assert abs(values.mean()) < 0.0005
    assert abs(np.corrcoef(values.ravel()[:-1], values.ravel()[1:])[0, 1]) < 0.02
    assert 0.9 < checkpoint.read("model.norm.weight").mean() < 1.1


def test_order_does_not_matter_but_seed_and_name_do(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    first, second = dummy(tmp_path), dummy(tmp_path)
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    forwards = first.read(up), first.read(gate)
    backwards = second.read(gate), second.read(up)
    np.testing.assert_array_equal(forwards[0], backwards[1])
    np.testing.assert_array_equal(forwards[1], backwards[0])
    assert not np.array_equal(forwards[0], forwards[1])
    assert not np.array_equal(forwards[0], dummy(tmp_path, seed=1).read(up))


def test_layers_keep_the_pattern_of_windows(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, family="qwen3", sliding_window=8)
    config = dummy(tmp_path, layers=5).config
    assert config.num_hidden_layers == 5
    assert config.sliding_windows == (None, 8, None, 8, None)


def test_text_comes_from_files_beside_the_config(tmp_path: Path) -> None:
    assert dummy(make_checkpoint(tmp_path / "with")).text is not None
    assert dummy(make_checkpoint(tmp_path / "without", tokenizer=False)).text is None
