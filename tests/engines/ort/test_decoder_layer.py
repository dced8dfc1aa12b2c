"""Our DecoderLayer against the operators that it replaces, which have tests of their own against float64.

The same graphs run twice: as they are, and with the function under a name for which there is no kernel, which ONNX
Runtime then inlines.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.engines.targets import find_target
from tests.engines.ort.own_kernels import LIBRARY, needs_kernels
from tests.graphs import canonical
from tests.traces import CONTEXT

pytestmark = needs_kernels

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "value apart": ("cpu-int4", "f32", {}),
    "packed": ("cpu-int8", "f32", {}),
    "biases": ("cpu-int4", "f32", {"family": "qwen2", "tied": True}),
    "float16 cache": ("cpu-int4", "f16", {}),
    "int8 cache": ("cpu-int8", "int8", {}),
}
# New tokens of each of three sequences, padded to the longest: enough for several pieces, then one each, gaps, and
# enough for several groups of AMX.
STEPS = ((9, 2, 5), (1, 1, 1), (0, 3, 1), (21, 1, 17))
CACHE_TYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


def lowered(folder: Any, target: str, kv: str) -> onnx.ModelProto:
    checkpoint = open_checkpoint(str(folder))
    row = find_target(target).with_kv(kv)
    model = canonical(checkpoint)
    lower(model, checkpoint, row)
    return ir.to_proto(model)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for one in (*other.functions, *other.graph.node):
        if isinstance(one, onnx.FunctionProto) and one.name.startswith("DecoderLayer"):
            one.name = "WithoutKernel"
        elif isinstance(one, onnx.NodeProto) and one.op_type.startswith("DecoderLayer"):
            one.op_type = "WithoutKernel"
    return other


def session(model: onnx.ModelProto, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(of: Any, kv: str) -> list[NDArray[np.float32]]:
    """The logits of all new tokens of STEPS, and the caches at the end."""
    caches: dict[str, NDArray[Any]] = {}
    for value in of.get_inputs():
        if value.name.startswith("past_key_values"):
            kind = np.float32 if value.name.endswith("_scale") else CACHE_TYPES[kv]
            caches[value.name] = np.zeros((len(STEPS[0]), *value.shape[1:2], CONTEXT, value.shape[3]), kind)
    lengths = np.zeros(len(STEPS[0]), np.int32)
    rng = np.random.default_rng(0)
    found = []
    for fresh in STEPS:
        width = max(fresh)
        lengths += np.array(fresh, np.int32)
        wanted = [row * width + token for row, count in enumerate(fresh) for token in range(count)]
        feeds = {
            "input_ids": rng.integers(0, 320, (len(fresh), width)),
            "seqlens_k": lengths - 1,
            "total_sequence_length": np.array(lengths.max(), np.int32),
            "query_seqlens": np.array(fresh, np.int32),
            "logits_index": np.array(wanted),
        }
        names = [output.name for output in of.get_outputs()]
        given = dict(zip(names, of.run(names, feeds | caches), strict=True))
        found.append(given["logits"])
        caches = {name: given[name.replace("past_key_values", "present")] for name in caches}
    return [*found, *(cache.astype(np.float32) for cache in caches.values())]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_operators_that_it_replaces(checkpoint_of: Any, shape: str) -> None:
    target, kv, kind = SHAPES[shape]
    model = lowered(checkpoint_of(layers=2, **kind), target, kv)
    assert sum(node.op_type.startswith("DecoderLayer") for node in model.graph.node) == 1
    expected, found = run(session(inlined(model)), kv), run(session(model), kv)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and np.isfinite(other).all()
        # Norms are summed in another order: here and there an input is rounded to the next of 255 steps.
        np.testing.assert_allclose(other, one, rtol=0, atol=0.03 * np.abs(one).max())
    steps = list(zip(expected, found, strict=True))[: len(STEPS)]
    of_tokens = np.concatenate([np.abs(other - one).max(axis=-1) for one, other in steps])
    assert (of_tokens < 1e-5).mean() > 0.5  # where none was, nothing else differs


def test_threads_change_nothing(checkpoint_of: Any) -> None:
    model = lowered(checkpoint_of(layers=2), "cpu-int4", "f32")
    for one, other in zip(run(session(model, 1), "f32"), run(session(model, 3), "f32"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("query_N", 32, "B has"),
        ("num_heads", 2, "have not the rows of all heads"),
        ("down_block_size", 512, "blocks of 16 to 256 are taken"),
        ("num_heads", 3, "not a multiple of kv_num_heads"),
    ],
)
def test_what_does_not_fit_is_refused(checkpoint_of: Any, attribute: str, value: int, message: str) -> None:
    model = lowered(checkpoint_of(layers=2), "cpu-int4", "f32")
    layer = next(node for node in model.graph.node if node.op_type == "DecoderLayer")
    kept = [one for one in layer.attribute if one.name != attribute]
    del layer.attribute[:]
    layer.attribute.extend([*kept, helper.make_attribute(attribute, value)])
    with pytest.raises(Exception, match=message):
        run(session(model), "f32")


def test_a_hidden_state_of_another_width_is_refused(checkpoint_of: Any) -> None:
    model = lowered(checkpoint_of(layers=2), "cpu-int4", "f32")
    layer = next(node for node in model.graph.node if node.op_type == "DecoderLayer")
    norm = next(one for one in model.graph.initializer if one.name == layer.input[1])
    changed = helper.make_tensor("narrow", TensorProto.FLOAT, [8], [1.0] * 8)
    model.graph.initializer.append(changed)
    assert norm.dims != changed.dims
    layer.input[1] = layer.input[2] = "narrow"
    with pytest.raises(Exception, match="hidden is not"):
        run(session(model), "f32")
