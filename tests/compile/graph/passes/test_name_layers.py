"""Projections and attentions carry the names that reports give them."""

from typing import Any

import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.name_layers import NameLayers
from tests.graphs import canonical

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("tied", [False, True])
def test_names_are_those_of_the_checkpoint(checkpoint_of: Any, tied: bool) -> None:
    model = canonical(open_checkpoint(str(checkpoint_of(tied=tied))))
    NameLayers()(model)
    names = {kind: [str(node.name) for node in model.graph if node.op_type == kind] for kind in ("MatMul", "Attention")}
    layers = [f"model.layers.{layer}" for layer in range(2)]
    assert names["Attention"] == [f"{layer}.self_attn" for layer in layers]
    expected = [f"{layer}.self_attn.{kind}" for layer in layers for kind in PROJECTIONS]
    expected += [f"{layer}.mlp.{kind}_proj" for layer in layers for kind in ("gate", "up", "down")]
    assert sorted(names["MatMul"]) == sorted([*expected, "lm_head"])
