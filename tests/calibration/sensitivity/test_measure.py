"""The divergence of quantising one projection group alone, against a model in which only that group is quantised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megrez.calibration.recipe import Recipe
from megrez.calibration.sensitivity.measure import measure_sensitivity
from megrez.calibration.sensitivity.report import draw, table
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import WeightedSearch
from megrez.compile.calibrate.held_out import model_of
from megrez.compile.checkpoint import open_checkpoint
from megrez.engines.weight_formats import WeightFormat
from tests import reference

INT4 = WeightFormat(bits=4, block=32, symmetric=True)
TOKENS = np.random.default_rng(3).integers(0, 320, (2, 12))
NAMES = {
    "model.layers.0.qkv": [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"],
    "model.layers.1.o": ["model.layers.1.self_attn.o_proj"],
    "model.layers.0.gate_up": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
    "model.layers.1.down": ["model.layers.1.mlp.down_proj"],
}


def recipe_for(part: str) -> Recipe:
    """INT4 for the matrices with `part` in their names."""
    return Recipe(
        smoothing=None, gptq=False, input_type=None, weight_format=lambda name: INT4 if part in name else None
    )


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return reference.log_softmax(model(torch.from_numpy(TOKENS)).logits.double().numpy())


def coarse(weight: torch.Tensor, importance: np.ndarray) -> torch.Tensor:
    """Quantised by the product itself, which is tested elsewhere: here, only which weights are."""
    return torch.from_numpy(quantize_nearest(weight.numpy(), INT4, WeightedSearch(importance)).dequantize())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_figure_is_that_of_the_whole_model_with_one_group_quantised(checkpoint_of: Any, family: str) -> None:
    folder = checkpoint_of(family=family)
    model = model_of(open_checkpoint(str(folder)), 16)
    recipe = Recipe(
        smoothing=None, gptq=False, input_type=None, weight_format=lambda name: INT4 if "layers" in name else None
    )
    found = measure_sensitivity(model, TOKENS, recipe)
    assert len(found) == 2 * 4
    theirs = reference.load(folder)
    reference_log_probs = logits(theirs)
    for group, names in NAMES.items():
        modules = [theirs.get_submodule(name) for name in names]
        kept = [module.weight.detach().clone() for module in modules]
        inputs: list[np.ndarray] = []
        hook = modules[0].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].numpy()))
        logits(theirs)
        hook.remove()
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        with torch.no_grad():
            for module in modules:
                module.weight.copy_(coarse(module.weight.detach(), np.square(x).mean(axis=0)))
        quantized = logits(theirs)
        with torch.no_grad():
            for module, weight in zip(modules, kept, strict=True):
                module.weight.copy_(weight)
        expected = (np.exp(reference_log_probs) * (reference_log_probs - quantized)).sum(axis=-1).mean()
        assert found[group] == pytest.approx(expected, rel=2e-3)


def test_a_group_that_is_not_quantised_has_no_figure(checkpoint_of: Any) -> None:
    model = model_of(open_checkpoint(str(checkpoint_of())), 16)
    recipe = Recipe(
        smoothing=None, gptq=False, input_type=None, weight_format=lambda name: INT4 if "o_proj" in name else None
    )
    assert sorted(measure_sensitivity(model, TOKENS, recipe)) == ["model.layers.0.o", "model.layers.1.o"]


def test_the_table_and_the_picture_show_every_layer(tmp_path: Path) -> None:
    divergences = {"model.layers.0.qkv": 0.0125, "model.layers.1.down": 0.001}
    lines = table(divergences, frozenset({"model.layers.0.qkv"}), 2).splitlines()
    assert lines[0].split() == ["layer", "qkv", "o", "gate_up", "down"]
    assert lines[1].split() == ["0", "12.500*", "-", "-", "-"] and lines[2].split() == ["1", "-", "-", "-", "1.000"]
    draw(divergences, frozenset({"model.layers.0.qkv"}), 2, "two layers", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
