"""Trace the decoder into the canonical ONNX graph: opset 24, standard ops, KV cache in and out, no weight read."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses import FakeTensorMode

from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.export.module import ONNX_OPSET, CausalLm
from megrez.compile.graph.export.optimum_config import TASK, LlamaExporterConfig
from megrez.compile.graph.export.repeat import repeat_layers
from megrez.compile.graph.passes.tidy import tidy


def trace(config: ModelConfig, context: int) -> ir.Model:
    """The canonical graph of a model of this shape, its rotary tables `context` positions long.

    Inputs: input_ids int64 [batch, sequence]; write_indices int64 [batch]; logits_index int64 [num_logits];
    past_key_values.N.key|value float32 [batch, num_key_value_heads, capacity, head_dim].
    Outputs: logits float32 [num_logits, vocab_size]; present.N.key|value, the caches with the new tokens written.
    Initializers have names, types and shapes but no values: `bind` makes them lazy tensors.
    """
    *windows, last = config.sliding_windows
    distinct = list(dict.fromkeys(windows))
    model = trace_every_layer(
        dataclasses.replace(config, num_hidden_layers=len(distinct) + 1, sliding_windows=(*distinct, last)), context
    )
    repeat_layers(model, [distinct.index(window) for window in windows])
    return model


def trace_every_layer(config: ModelConfig, context: int) -> ir.Model:
    """What `trace` returns, traced by torch layer by layer."""
    exporter = LlamaExporterConfig(config, TASK)
    with FakeTensorMode(), _quiet():
        module = CausalLm(config, context).eval()
        inputs = exporter.generate_dummy_inputs(batch_size=2, sequence_length=3)
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=ONNX_OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=_dynamic_shapes(exporter.inputs, config.num_hidden_layers),
        )
    assert program is not None
    model: ir.Model = program.model
    _name_interface(model, config.num_hidden_layers)
    tidy(model)
    for name, value in model.graph.initializers.items():
        if name.startswith(("model.", "lm_head.")):
            value.const_value = None
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of optional packages and its own deprecations, on which a user cannot act."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _dynamic_shapes(axes: dict[str, dict[int, str]], layers: int) -> dict[str, Any]:
    dims = {name: torch.export.Dim(name) for axis in axes.values() for name in axis.values()}
    shapes: dict[str, Any] = {name: {i: dims[d] for i, d in axis.items()} for name, axis in axes.items()}
    shapes["past_key_values"] = [(shapes["past_key_values"],) * 2] * layers
    return shapes


def _name_interface(model: ir.Model, layers: int) -> None:
    """Name the caches as onnxruntime-genai and optimum do."""
    pairs = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    for value, pair in zip(model.graph.inputs[3:], pairs, strict=True):
        value.name = f"past_key_values.{pair}"
    model.graph.outputs[0].name = "logits"
    for value, pair in zip(model.graph.outputs[1:], pairs, strict=True):
        value.name = f"present.{pair}"
