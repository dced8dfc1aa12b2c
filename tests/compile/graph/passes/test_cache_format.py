"""Only attention and its caches change, and every change can be undone."""

from typing import Any

import onnx_ir as ir
import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.cache_format import DTYPES, OPERATORS, CacheFormat
from megrez.compile.graph.passes.group_query_attention import GroupQueryAttention
from tests.graphs import canonical


@pytest.fixture
def model(checkpoint_of: Any) -> ir.Model:
    checkpoint = open_checkpoint(str(checkpoint_of()))
    made: ir.Model = canonical(checkpoint)
    GroupQueryAttention(checkpoint.config)(made)
    return made


def interface(values: Any) -> list[tuple[str, str, str]]:
    return [(value.name, str(value.dtype), str(value.shape)) for value in values]


def described(model: ir.Model) -> Any:
    nodes = [(node.domain, node.op_type, [value and value.name for value in node.inputs]) for node in model.graph]
    return interface(model.graph.inputs), interface(model.graph.outputs), nodes


def test_float32_changes_nothing(model: ir.Model) -> None:
    before = described(model)
    assert not CacheFormat("float32")(model).modified and described(model) == before


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_caches_have_the_data_type_and_there_is_a_way_back(model: ir.Model, dtype: str) -> None:
    before = described(model)
    assert CacheFormat(dtype)(model).modified
    attentions = [node for node in model.graph if (node.domain, node.op_type) == OPERATORS[dtype]]
    assert len(attentions) == 2 and model.opset_imports["megrez.cache"] == 1
    caches = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.name.endswith((".key", ".value"))]
    assert len(caches) == 8 and {value.dtype for value in caches} == {DTYPES[dtype]}
    scales = [value for value in model.graph.inputs if value.name.endswith("_scale")]
    assert [value.name for value in scales] == [
        f"past_key_values.{layer}.{kind}_scale" for layer in (0, 1) for kind in ("key", "value") if dtype == "int8"
    ]
    assert {(value.dtype, value.shape[3]) for value in scales} == ({(ir.DataType.FLOAT, 1)} if scales else set())
    assert CacheFormat("float32")(model).modified and described(model) == before
