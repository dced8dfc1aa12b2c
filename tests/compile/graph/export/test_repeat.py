"""A graph whose layers are repeated is the graph that torch traces layer by layer, but for the names of its nodes."""

from typing import Any

import onnx_ir as ir
import pytest

from megrez.compile.families.config import read_config
from megrez.compile.graph.export.trace import trace, trace_every_layer
from megrez.compile.graph.passes.split_rotary import SplitRotary
from tests.traces import CONTEXT

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "attention_bias": True,
    "num_hidden_layers": 5,
    "use_sliding_window": True,
    "sliding_window": 7,
}
FULL, WINDOW = "full_attention", "sliding_attention"


def computations(model: ir.Model) -> dict[str, Any]:
    """What each output is computed from, down to inputs and initializers; no names in between."""
    forms: dict[ir.Value | None, Any] = {None: None}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        constant = value.const_value
        forms[value] = hash((value.name, str(value.shape), value.dtype, constant and constant.numpy().tobytes()))
    for node in model.graph:
        attributes = {
            name: one.as_tensor().numpy().tobytes() if one.type == ir.AttributeType.TENSOR else str(one.value)
            for name, one in node.attributes.items()
        }
        read = tuple(forms[value] for value in node.inputs)
        for value in node.outputs:
            forms[value] = hash((node.op_identifier(), tuple(sorted(attributes.items())), read, value.index()))
    return {str(value.name): (forms[value], str(value.shape), value.dtype) for value in model.graph.outputs}


@pytest.mark.parametrize(
    "layer_types",
    [
        [WINDOW, FULL, WINDOW, FULL, FULL],
        pytest.param([FULL, FULL, FULL, FULL, WINDOW], marks=pytest.mark.slow),
        pytest.param([FULL, FULL, FULL, FULL, FULL], marks=pytest.mark.slow),
    ],
)
def test_repeated_layers_are_those_that_torch_traces(layer_types: list[str]) -> None:
    config = read_config({**SHAPE, "layer_types": layer_types})
    assert [window is None for window in config.sliding_windows] == [kind == FULL for kind in layer_types]
    repeated, traced = trace(config, CONTEXT), trace_every_layer(config, CONTEXT)
    assert computations(repeated) == computations(traced)
    for values in ("inputs", "outputs"):
        names = [[value.name for value in getattr(model.graph, values)] for model in (repeated, traced)]
        assert names[0] == names[1]
    assert set(repeated.graph.initializers) == set(traced.graph.initializers)
    names = [name for node in repeated.graph for name in (node.name, *(value.name for value in node.outputs))]
    assert len(names) == len(set(names))


def test_values_that_a_pass_adds_to_repeated_layers_have_names_of_their_own() -> None:
    model = trace(read_config({**SHAPE, "num_hidden_layers": 8, "layer_types": [FULL] * 8}), CONTEXT)
    SplitRotary()(model)
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))
