"""The forward pass over a whole model beside transformers' own."""

from dataclasses import replace

import numpy as np
import pytest

from megrez.calibration.layerwise import reference_hidden_states
from megrez.calibration.reference import decoder
from megrez.calibration.reference.decoder import GROUPS, apply_rope, forward, linear_of
from megrez.compile.families.registry import families
from tests import reference
from tests.calibration_models import open_model, random_tokens
from tests.conftest import Make

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
def test_logits_are_transformers(name: str, checkpoint_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "QUERIES", 16)  # the last block is short
    folder = checkpoint_of(**MODELS[name])
    model, tokens = open_model(folder, LENGTH), random_tokens(SAMPLES, LENGTH)
    calls: list[int] = []
    hidden = reference_hidden_states(model, tokens, calls.append)
    assert calls == [1, 2] and hidden.dtype == np.float32
    for sample, ids in zip(hidden, tokens, strict=True):
        found = model.lm_head()(sample)
        np.testing.assert_allclose(found, reference.logits(folder, ids.tolist()), rtol=0, atol=1e-4)


def test_what_the_models_have_decides_their_logits(checkpoint_of: Make) -> None:
    """The comparison above would see a window, a bias, a norm or a scaling that was left out."""
    ids = random_tokens(1, LENGTH)

    def logits(name: str, *, without: str = "", windows: bool = True) -> np.ndarray:
        model = open_model(checkpoint_of(**MODELS[name]), LENGTH)
        names = tuple(one for one in model.names if not (without and one.endswith(without)))
        model = replace(model, names=names, windows=model.windows if windows else (None, None))
        return model.lm_head()(reference_hidden_states(model, ids)[0])

    for name, left_out in (("biases", "v_proj.bias"), ("biases", "down_proj.bias"), ("qwen2", "k_proj.bias")):
        assert np.abs(logits(name) - logits(name, without=left_out)).max() > 1e-3
    assert np.abs(logits("qwen3") - logits("qwen3", without="q_norm.weight")).max() > 1e-3
    for name in ("mistral", "qwen2"):
        assert np.abs(logits(name) - logits(name, windows=False)).max() > 1e-3
    assert np.abs(logits("llama") - logits("llama3")).max() > 1e-3


def test_samples_do_not_see_each_other(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(), LENGTH)
    tokens = random_tokens(3, LENGTH)
    together = reference_hidden_states(model, tokens)
    for sample in range(3):
        alone = reference_hidden_states(model, tokens[sample : sample + 1])
        np.testing.assert_allclose(together[sample], alone[0], rtol=0, atol=1e-5)
    other = tokens.copy()
    other[1] = other[1, ::-1]
    changed = reference_hidden_states(model, other)
    np.testing.assert_array_equal(changed[[0, 2]], together[[0, 2]])
    assert np.abs(changed[1] - together[1]).max() > 0.1


def test_no_token_sees_a_later_one(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(), LENGTH)
    tokens = random_tokens(1, LENGTH)
    other = tokens.copy()
    other[0, 30:] = other[0, 30:][::-1]
    early, late = (reference_hidden_states(model, ids)[0] for ids in (tokens, other))
    np.testing.assert_array_equal(early[:30], late[:30])


def test_groups_are_computed_in_order_from_what_precedes_them(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(), LENGTH)
    layer = model.layer(0)
    x = np.random.default_rng(0).standard_normal((2, LENGTH, 96)).astype(np.float32)
    reference, inputs, outputs = linear_of(layer), {}, {}

    def linear(group: str, x: np.ndarray) -> np.ndarray:
        inputs[group], outputs[group] = x, reference(group, x)
        return outputs[group]

    y = forward(x, layer, model.shape, None, linear)
    assert list(inputs) == list(GROUPS)
    middle = x.reshape(-1, 96).astype(np.float64) + outputs["o"]
    np.testing.assert_allclose(y.reshape(-1, 96), middle + outputs["down"], rtol=0, atol=1e-5)
    for group, stream, norm in (
        ("qkv", x.reshape(-1, 96), "input_layernorm"),
        ("gate_up", middle, "post_attention_layernorm"),
    ):
        exact = stream.astype(np.float64)
        mean_square = (exact**2).mean(axis=1, keepdims=True)
        expected = exact / np.sqrt(mean_square + model.shape.rms_norm_eps) * layer[f"{norm}.weight"]
        np.testing.assert_allclose(inputs[group], expected, rtol=0, atol=1e-5)
    gate, up = np.split(outputs["gate_up"].astype(np.float64), 2, axis=1)
    np.testing.assert_allclose(inputs["down"], gate / (1 + np.exp(-gate)) * up, rtol=0, atol=1e-5)


def test_keys_turn_with_their_positions_and_values_do_not(checkpoint_of: Make) -> None:
    """RoPE in complex numbers, as its paper defines it: channels i and i + d / 2 are one number's parts."""
    model = open_model(checkpoint_of(), LENGTH)
    x = np.random.default_rng(0).standard_normal((3, LENGTH, 32)).astype(np.float32)
    angles = np.arange(LENGTH)[:, None] * 10000.0 ** (-np.arange(16) / 16)
    expected = (x[..., :16] + 1j * x[..., 16:]) * np.exp(1j * angles)
    found = apply_rope(x, model.shape)
    np.testing.assert_allclose(found[..., :16] + 1j * found[..., 16:], expected, rtol=0, atol=1e-4)
