"""Projections and the embedding in a target's weight formats: MatMulNBits and GatherBlockQuantized (ONNX Runtime).

Reads no weight: the new initializers are lazy tensors, quantised when they are written.
"""

import dataclasses
from dataclasses import dataclass

import onnx_ir as ir

from megrez.calibration.reference.model import EMBED_TOKENS
from megrez.compile.graph.packing import packed_codes, packed_zero_points
from megrez.compile.graph.passes.block_means import means_product
from megrez.compile.graph.passes.graph import (
    MICROSOFT,
    constant,
    name_of,
    only_consumer,
    operand,
    producer,
    replace,
    shape_of,
    static_shape,
)
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import MatrixPlan, Quantizer
from megrez.compile.graph.weights import SOURCES, add_lazy
from megrez.engines.weight_formats import WeightFormat

# accuracy_level 4: on a CPU, MatMulNBits quantises its input to int8 per block, 12 times as fast as without.
INT8_ARITHMETIC = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The initializers of one quantised matrix."""

    plan: MatrixPlan
    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None


class QuantizeWeights(ir.passes.InPlacePass):
    """MatMul(x, w) [+ b]  ->  MatMulNBits(x, codes, scales, zero points, b); Gather(w)  ->  GatherBlockQuantized."""

    def __init__(self, quantizer: Quantizer, precision: Precision, *, accuracy_level: int = INT8_ARITHMETIC) -> None:
        super().__init__()
        self.quantizer, self.precision, self.accuracy_level = quantizer, precision, accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        made: dict[MatrixPlan, Matrix] = {}
        replaced: set[str] = set()
        for node in list(model.graph):
            weight = _weight(node)
            weight_format = None if weight is None else self._format_of(node, weight)
            if weight is None or weight_format is None:
                continue
            name = name_of(weight)
            replaced.add(name)
            parts = self._parts(node, weight, weight_format)
            for part, plan in parts.items():
                if plan not in made:
                    made[plan] = self._matrix(model, part, plan)
            matrices = [made[plan] for plan in parts.values()]
            if node.op_type == "Gather":
                _lower_gather(model, node, matrices)
            else:
                _lower_matmul(model, node, matrices, self.accuracy_level)
        for name in replaced:
            model.graph.initializers.pop(name)
        return ir.passes.PassResult(model, modified=bool(made))

    def _format_of(self, node: ir.Node, weight: ir.Value) -> WeightFormat | None:
        if node.op_type == "Gather":
            return self.precision.embedding_format()
        return self.precision.format_of(weight.meta[SOURCES][0])

    def _parts(self, node: ir.Node, weight: ir.Value, weight_format: WeightFormat) -> dict[str, MatrixPlan]:
        """The plans of the matrices that `weight` is stored as, in the order of their rows, by name."""
        name, sources = name_of(weight), weight.meta[SOURCES]
        n, k = static_shape(weight) if name == EMBED_TOKENS else reversed(static_shape(weight))
        stem = "lm_head" if name == EMBED_TOKENS and node.op_type == "MatMul" else name.removesuffix(".weight")
        common = 0 if node.op_type == "Gather" else self.precision.higher_precision_rows(sources[0], n)
        plan = self.quantizer.plan(sources, n, k, weight_format)
        if not common:
            return {stem: plan}
        embedding_format = self.precision.embedding_format()
        assert embedding_format is not None
        return {
            f"{stem}.common": self.quantizer.plan(sources, common, k, embedding_format),
            stem: dataclasses.replace(plan, n=n - common, first=common),
        }

    def _matrix(self, model: ir.Model, stem: str, plan: MatrixPlan) -> Matrix:
        make, n, blocks = self.quantizer, plan.n, plan.blocks
        codes_shape = (n, blocks, plan.block * plan.bits // 8)
        codes = add_lazy(model, f"{stem}.codes", ir.DataType.UINT8, codes_shape, lambda: packed_codes(make(plan)))
        scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT, (n, blocks), lambda: make(plan).scales)
        zero_points = None
        if plan.zero_points:
            name, shape = f"{stem}.zero_points", (n, -(-blocks * plan.bits // 8))
            zero_points = add_lazy(model, name, ir.DataType.UINT8, shape, lambda: packed_zero_points(make(plan)))
        return Matrix(plan=plan, codes=codes, scales=scales, zero_points=zero_points)


def _weight(node: ir.Node) -> ir.Value | None:
    """The checkpoint matrix that `node` multiplies by or gathers from, directly or through a Transpose."""
    if node.op_type == "Gather":
        value = operand(node, 0)
    elif node.op_type == "MatMul":
        value = operand(node, 1)
        transpose = producer(value, "Transpose")
        value = value if transpose is None else operand(transpose, 0)
    else:
        return None
    return value if SOURCES in value.meta else None


def _lower_matmul(model: ir.Model, node: ir.Node, parts: list[Matrix], accuracy_level: int) -> None:
    add = only_consumer(node.outputs[0], "Add")
    bias = operand(add, 1) if add is not None and SOURCES in operand(add, 1).meta else None
    end = node if add is None or bias is None else add
    products = [_product(model, node, matrix, bias, accuracy_level) for matrix in parts]
    if len(products) == 1:
        replace(model, [end.outputs[0]], products[0].outputs, at=end, node=products[0])
        return
    assert bias is None, "only the LM head has parts, and it has no bias"
    model.graph.insert_before(end, products)
    logits = ir.node("Concat", [product.outputs[0] for product in products], {"axis": -1})
    replace(model, [end.outputs[0]], logits.outputs, at=end, node=logits)


def _product(model: ir.Model, node: ir.Node, matrix: Matrix, bias: ir.Value | None, accuracy_level: int) -> ir.Node:
    plan = matrix.plan
    attributes = {
        "K": plan.k,
        "N": plan.n,
        "bits": plan.bits,
        "block_size": plan.block,
        "accuracy_level": accuracy_level,
    }
    inputs = [operand(node, 0), matrix.codes, matrix.scales, matrix.zero_points, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    if plan.folded:
        return _means_product(model, node, inputs, attributes)
    return ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)


def _means_product(
    model: ir.Model, node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int]
) -> ir.Node:
    """The product with a folded matrix; an input of two dimensions has three within, which AveragePool needs."""
    if len(shape_of(operand(node, 0))) != 2:
        return means_product(model, inputs, attributes)
    axis = constant(model, f"{node.name}.axis", ir.tensor([0], dtype=ir.DataType.INT64))
    unsqueezed = ir.node("Unsqueeze", [inputs[0], axis])
    product = means_product(model, [unsqueezed.outputs[0], *inputs[1:]], attributes)
    model.graph.insert_before(node, [unsqueezed, product])
    return ir.node("Squeeze", [product.outputs[0], axis])


def _lower_gather(model: ir.Model, node: ir.Node, parts: list[Matrix]) -> None:
    """The codes keep MatMulNBits' three dimensions, so that a tied lm_head shares them; the scales are reshaped."""
    (matrix,) = parts
    plan, stem = matrix.plan, name_of(matrix.codes).removesuffix(".codes")
    assert matrix.zero_points is None and not plan.folded
    shape = constant(model, f"{stem}.scales_shape", ir.tensor([plan.n, plan.blocks, 1], dtype=ir.DataType.INT64))
    scales = ir.node("Reshape", [matrix.scales, shape])
    attributes = {"bits": plan.bits, "block_size": plan.block, "gather_axis": 0, "quantize_axis": 2}
    inputs = [matrix.codes, operand(node, 1), scales.outputs[0]]
    gathered = ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)
    width = constant(model, f"{stem}.row_shape", ir.tensor([0, 0, -1], dtype=ir.DataType.INT64))
    row = ir.node("Reshape", [gathered.outputs[0], width])
    model.graph.insert_before(node, [scales, gathered])
    if plan.k < plan.blocks * plan.block:  # the padding of a short last block is removed
        model.graph.insert_before(node, row)
        bounds = {"start": 0, "end": plan.k, "axis": 2}
        ends = [constant(model, f"{stem}.row_{name}", ir.tensor([at])) for name, at in bounds.items()]
        row = ir.node("Slice", [row.outputs[0], *ends])
    replace(model, [node.outputs[0]], row.outputs, at=node, node=row)
