"""MeansMatMulNBits: an ONNX function, MatMulNBits of x and the means of its blocks; see calibration.weights.offsets.

A runtime with a kernel for megrez::MeansMatMulNBits (engines/ort/kernels/matmul_nbits.c) uses it, any other inlines
the function.
"""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import MEGREZ, MICROSOFT

NAME = "MeansMatMulNBits"
OPSET = 24
INPUTS = "A", "B", "scales", "zero_points", "g_idx", "bias"
ATTRIBUTES = "K", "N", "bits", "block_size", "accuracy_level"
# AveragePool has a list where MatMulNBits has an integer, and a function cannot convert one to the other.
BLOCK_SHAPE = "block_shape"


def means_product(model: ir.Model, inputs: list[ir.Value | None], attributes: dict[str, int]) -> ir.Node:
    """A node for the inputs and attributes of a MatMulNBits whose matrix has a column per block of the input [B, T, K].

    Adds the function to the model if it is not there yet.
    """
    function = _function()
    model.functions.setdefault(function.identifier(), function)
    model.opset_imports[MEGREZ] = 1
    return ir.node(NAME, inputs, {**attributes, BLOCK_SHAPE: [attributes["block_size"]]}, domain=MEGREZ)


def _function() -> ir.Function:
    x, *weights = (ir.Value(name=name) for name in INPUTS)
    pool = ir.Node(
        "",
        "AveragePool",
        [x],
        [ir.RefAttr(name, BLOCK_SHAPE, ir.AttributeType.INTS) for name in ("kernel_shape", "strides")],
    )
    joined = ir.node("Concat", [x, pool.outputs[0]], {"axis": -1})
    attributes = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in ATTRIBUTES]
    product = ir.Node(MICROSOFT, "MatMulNBits", [joined.outputs[0], *weights], attributes)
    opsets = {"": OPSET, MICROSOFT: 1}
    graph = ir.Graph([x, *weights], product.outputs, nodes=[pool, joined, product], opset_imports=opsets, name=NAME)
    integers = [ir.Attr(name, ir.AttributeType.INT, None) for name in ATTRIBUTES]
    block_shape = ir.Attr(BLOCK_SHAPE, ir.AttributeType.INTS, None)
    return ir.Function(MEGREZ, NAME, graph=graph, attributes=[*integers, block_shape])
