"""What enters each layer has a name, and so have the rotary tables' rows."""

from typing import Any

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.name_boundaries import NameBoundaries
from tests.graphs import canonical


def test_layers_can_be_cut_where_the_norms_read(checkpoint_of: Any) -> None:
    model = canonical(open_checkpoint(str(checkpoint_of())))
    NameBoundaries(2)(model)
    made = {str(value.name): node for node in model.graph for value in node.outputs}
    assert made["hidden.0"].op_type == "Gather" and made["hidden.1"].op_type == made["hidden.2"].op_type == "Add"
    for kind in ("cos", "sin"):
        assert str(made[f"rotary_{kind}"].inputs[0].name) == f"model.rotary_{kind}"
    norms = {str(n.inputs[1].name): str(n.inputs[0].name) for n in model.graph if n.op_type == "RMSNormalization"}
    assert norms["model.layers.1.input_layernorm.weight"] == "hidden.1" and norms["model.norm.weight"] == "hidden.2"
