"""What a graph asks of its engine, and the graphs that no engine could run right."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from megrez.engines.tensorrt.graph import graph_faults, read_graph
from tests import engine_graphs as broken
from tests.engine_graphs import CAPACITY, SHAPE, engine_graph

LAYERS = ("model.layers.0.self_attn", "model.layers.1.self_attn")
PROJECTIONS = ("self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj", "mlp.down_proj")


@pytest.mark.parametrize(
    ("target", "kind"),
    [(f"trt-{name}", name.removeprefix("nv")) for name in ("fp16", "int8", "fp8", "int4", "nvfp4")],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_graph_asks_for_the_types_of_its_weights(checkpoint_of: Any, target: str, kind: str, tied: bool) -> None:
    asked = read_graph(engine_graph(checkpoint_of(**SHAPE, tied=tied), target))
    layers = {f"model.layers.{layer}.{projection}": kind for layer in range(2) for projection in PROJECTIONS}
    assert asked.projections == {**layers, "lm_head": "fp16"}
    assert asked.attentions == LAYERS
    assert asked.capacity == CAPACITY


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"family": "qwen2", "biases": True},
        {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
        {"family": "mistral", "sliding_window": 5, "tied": True},
        {"family": "qwen2", "sliding_window": 5, "tied": True},
    ],
    ids=str,
)
def test_the_graphs_of_all_families_are_sound(checkpoint_of: Any, shape: dict[str, Any]) -> None:
    assert graph_faults(engine_graph(checkpoint_of(**shape), "trt-fp16")) == []


@pytest.mark.parametrize(
    ("breaks", "said", "layers"),
    [
        (broken.make_causal, "has is_causal, which counts from the cache's first position", LAYERS),
        (broken.hide_the_token_itself, "has a mask that is not causal", LAYERS),
        (broken.show_what_comes_after, "has a mask that is not causal", LAYERS),
        (broken.copy_a_cache_before_it_is_written, "is not written in place", ("past_key_values.0.key",)),
        (broken.copy_a_cache_before_it_is_returned, "is not written in place", ("past_key_values.0.key",)),
    ],
)
def test_a_broken_graph_is_named_by_its_layers(
    checkpoint_of: Any, breaks: Callable[[ir.Model], None], said: str, layers: tuple[str, ...]
) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp16")
    breaks(model)
    faults = graph_faults(model)
    assert [fault.partition(" ")[0] for fault in faults] == list(layers)
    assert all(said in fault for fault in faults)


def without_a_mask(model: ir.Model) -> None:
    for node in broken.find(model, "Attention"):
        node.replace_input_with(3, None)


def with_lengths(model: ir.Model) -> None:
    for node in broken.find(model, "Attention"):
        node.resize_inputs(7)
        node.replace_input_with(6, model.graph.inputs[1])


def with_a_mask_turned_round(model: ir.Model) -> None:
    broken.insert(model, "Not", broken.find(model, "Attention")[0], 3)


def with_a_mask_of_weights(model: ir.Model) -> None:
    value = model.graph.initializers["model.embed_tokens.weight"]
    broken.find(model, "Attention")[0].replace_input_with(3, value)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (without_a_mask, "has no mask and would attend to positions that were never written"),
        (with_lengths, "takes sequence lengths from nonpad_kv_seqlen, which TensorRT's parser drops"),
        (with_a_mask_turned_round, "has a mask that is not causal"),
        (with_a_mask_of_weights, "has a mask that depends on more than positions"),
    ],
)
def test_an_attention_that_would_read_the_wrong_slots_is_refused(
    checkpoint_of: Any, breaks: Callable[[ir.Model], None], said: str
) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp16")
    breaks(model)
    faults = graph_faults(model)
    assert faults and said in faults[0] and faults[0].startswith(LAYERS[0])
