"""The walk over a whole model beside transformers' own forward pass."""

from dataclasses import replace

import numpy as np
import pytest

from megrez.calibration.reference.decoder import POINTS, forward, linear_of
from megrez.calibration.walk import walk_exact
from megrez.compile.families.registry import families
from tests import reference
from tests.conftest import Make
from tests.walked import open_model, random_tokens

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Samples are several windows long.
SAMPLES, LENGTH, WINDOW = 2, 40, 13
MODELS = {
    **{family.model_type: {"family": family.model_type} for family in families()},
    "tied": {"tied": True},
    "biases": {"biases": True},
    "mistral": {"family": "mistral", "sliding_window": WINDOW},
    "qwen2": {"family": "qwen2", "sliding_window": WINDOW},
    "qwen3": {"family": "qwen3", "biases": True},
    "llama3": {"rope": LLAMA3},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_transformers(name: str, checkpoint_of: Make) -> None:
    folder = checkpoint_of(**MODELS[name])
    model, tokens = open_model(folder, LENGTH), random_tokens(SAMPLES, LENGTH)
    told: list[int] = []
    hidden = walk_exact(model, tokens, told.append)
    assert told == [1, 2] and hidden.dtype == np.float32
    for sample, ids in zip(hidden, tokens, strict=True):
        found = model.head()(sample)
        np.testing.assert_allclose(found, reference.logits(folder, ids.tolist()), rtol=0, atol=1e-4)


def test_what_the_models_have_decides_their_logits(checkpoint_of: Make) -> None:
    """The comparison above would see a window, a bias, a norm or a scaling that was left out."""
    ids = random_tokens(1, LENGTH)

    def logits(name: str, *, without: str = "", windows: bool = True) -> np.ndarray:
        model = open_model(checkpoint_of(**MODELS[name]), LENGTH)
        names = tuple(one for one in model.names if not (without and one.endswith(without)))
        model = replace(model, names=names, windows=model.windows if windows else (None, None))
        return model.head()(walk_exact(model, ids)[0])

    for name, left_out in (("biases", "v_proj.bias"), ("biases", "down_proj.bias"), ("qwen2", "k_proj.bias")):
        assert np.abs(logits(name) - logits(name, without=left_out)).max() > 1e-3
    assert np.abs(logits("qwen3") - logits("qwen3", without="q_norm.weight")).max() > 1e-3
    for name in ("mistral", "qwen2"):
        assert np.abs(logits(name) - logits(name, windows=False)).max() > 1e-3
    assert np.abs(logits("llama") - logits("llama3")).max() > 1e-3


def test_samples_do_not_see_each_other(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(), LENGTH)
    tokens = random_tokens(3, LENGTH)
    together = walk_exact(model, tokens)
    for sample in range(3):
        alone = walk_exact(model, tokens[sample : sample + 1])
        np.testing.assert_allclose(together[sample], alone[0], rtol=0, atol=1e-5)
    other = tokens.copy()
    other[1] = other[1, ::-1]
    changed = walk_exact(model, other)
    np.testing.assert_array_equal(changed[[0, 2]], together[[0, 2]])
    assert np.abs(changed[1] - together[1]).max() > 0.1


def test_no_token_sees_a_later_one(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(), LENGTH)
    tokens = random_tokens(1, LENGTH)
    other = tokens.copy()
    other[0, 30:] = other[0, 30:][::-1]
    early, late = (walk_exact(model, ids)[0] for ids in (tokens, other))
    np.testing.assert_array_equal(early[:30], late[:30])


def test_points_are_asked_in_order_and_caches_watched(checkpoint_of: Make) -> None:
    """What a cache gets is the rotated key: its size is the projection's, its direction not, but at position 0."""
    model, layer = open_model(checkpoint_of(), LENGTH), open_model(checkpoint_of(), LENGTH).layer(0)
    x = np.random.default_rng(0).standard_normal((2, LENGTH, 96)).astype(np.float32)
    exact, asked, seen = linear_of(layer), {}, {"key": [], "value": []}

    def linear(point: str, inputs: np.ndarray) -> np.ndarray:
        asked[point] = exact(point, inputs)
        return asked[point]

    forward(x, layer, model.shape, None, linear, lambda kind, one: seen[kind].append(one))
    assert list(asked) == list(POINTS)
    _, keys, values = np.split(asked["qkv"].reshape(2, LENGTH, -1), [6 * 32, 8 * 32], axis=2)
    for kind, projected in (("key", keys), ("value", values)):
        assert len(seen[kind]) == 2  # samples
        cached = np.stack(seen[kind]).reshape(2, 2, LENGTH, 32)  # [S, g, T, d]
        made = projected.reshape(2, LENGTH, 2, 32).transpose(0, 2, 1, 3)
        if kind == "value":
            np.testing.assert_array_equal(cached, made)
        else:
            np.testing.assert_allclose(cached[:, :, 0], made[:, :, 0], rtol=1e-6)
            np.testing.assert_allclose((cached**2).sum(-1), (made**2).sum(-1), rtol=1e-5)
            assert np.abs(cached[:, :, 1:] - made[:, :, 1:]).max() > 0.1
