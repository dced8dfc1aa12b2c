"""Projections and the embedding in a target's weight format: MatMulNBits and GatherBlockQuantized (ONNX Runtime).

Reads no weight: the new initializers are recipes that quantise when they are written.
"""

import onnx_ir as ir

from megrez.compile.packing import packed_codes, packed_zero_points
from megrez.compile.passes.graph import MICROSOFT, constant, only_consumer, producer, replace
from megrez.compile.quantizer import Quantizer
from megrez.compile.weights import SOURCES, add_lazy
from megrez.engines.targets import Target, WeightFormat

# MatMulNBits quantises its input to int8 per block and multiplies integers; level 0 would be 12 times slower.
INT8_ARITHMETIC = 4
HEAD = ("lm_head.weight", "model.embed_tokens.weight")


class QuantizeWeights(ir.passes.InPlacePass):  # type: ignore[misc]
    """MatMul(x, w) [+ b]  ->  MatMulNBits(x, codes, scales, zero points, b); Gather(w)  ->  GatherBlockQuantized."""

    def __init__(self, quantizer: Quantizer, target: Target) -> None:
        super().__init__()
        self.quantizer, self.target = quantizer, target

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        made: dict[str, _Matrix] = {}
        for node in list(model.graph):
            weight = _weight(node)
            form = self._form(weight)
            if weight is None or form is None:
                continue
            if weight.name not in made:
                made[weight.name] = self._matrix(model, weight, form)
            lower = _lower_gather if node.op_type == "Gather" else _lower_matmul
            lower(model, node, made[weight.name])
        for name in made:
            model.graph.initializers.pop(name)
        return ir.passes.PassResult(model, modified=bool(made))

    def _form(self, weight: ir.Value | None) -> WeightFormat | None:
        if weight is None:
            return None
        wanted = self.target.head if weight.name in HEAD else self.target.weights
        return None if wanted is None else self.quantizer.form_of(weight.meta[SOURCES], wanted)

    def _matrix(self, model: ir.Model, weight: ir.Value, form: WeightFormat) -> "_Matrix":
        sources, quantizer, stem = weight.meta[SOURCES], self.quantizer, weight.name.removesuffix(".weight")
        n, k = weight.shape if weight.name == HEAD[1] else reversed(weight.shape)
        blocks = -(-k // form.block)
        codes = add_lazy(
            model,
            f"{stem}.codes",
            ir.DataType.UINT8,
            (n, blocks, form.block * form.bits // 8),
            lambda: packed_codes(quantizer(sources, form)),
        )
        scales = add_lazy(
            model, f"{stem}.scales", ir.DataType.FLOAT, (n, blocks), lambda: quantizer(sources, form).scales
        )
        zero_points = None
        if not form.symmetric:
            width = -(-blocks * form.bits // 8)
            zero_points = add_lazy(
                model,
                f"{stem}.zero_points",
                ir.DataType.UINT8,
                (n, width),
                lambda: packed_zero_points(quantizer(sources, form)),
            )
        return _Matrix(codes, scales, zero_points, form, n, k)


class _Matrix:
    """The initializers of one quantised matrix [n, k]."""

    def __init__(
        self, codes: ir.Value, scales: ir.Value, zero_points: ir.Value | None, form: WeightFormat, n: int, k: int
    ) -> None:
        self.codes, self.scales, self.zero_points = codes, scales, zero_points
        self.form, self.n, self.k = form, n, k


def _weight(node: ir.Node) -> ir.Value | None:
    """The checkpoint matrix that `node` multiplies by or gathers from, seen through a Transpose."""
    if node.op_type == "Gather":
        value = node.inputs[0]
    elif node.op_type == "MatMul":
        transpose = producer(node.inputs[1], "Transpose")
        value = node.inputs[1] if transpose is None else transpose.inputs[0]
    else:
        return None
    return value if SOURCES in value.meta else None


def _lower_matmul(model: ir.Model, node: ir.Node, matrix: _Matrix) -> None:
    add = only_consumer(node.outputs[0], "Add")
    bias = add.inputs[1] if add is not None and SOURCES in add.inputs[1].meta else None
    end = node if add is None or bias is None else add
    attributes = {
        "K": matrix.k,
        "N": matrix.n,
        "bits": matrix.form.bits,
        "block_size": matrix.form.block,
        "accuracy_level": INT8_ARITHMETIC,
    }
    inputs = [node.inputs[0], matrix.codes, matrix.scales, matrix.zero_points, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    fused = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)
    replace(model, [end.outputs[0]], fused.outputs, at=end, node=fused)


def _lower_gather(model: ir.Model, node: ir.Node, matrix: _Matrix) -> None:
    """The codes keep MatMulNBits' three dimensions, so that a tied lm_head shares them; the scales follow by Reshape."""
    blocks, stem = matrix.scales.shape[1], matrix.codes.name.removesuffix(".codes")
    assert matrix.zero_points is None and matrix.k == blocks * matrix.form.block
    shape = constant(model, f"{stem}.scales_shape", ir.tensor([matrix.n, blocks, 1], dtype=ir.DataType.INT64))
    scales = ir.node("Reshape", [matrix.scales, shape])
    attributes = {"bits": matrix.form.bits, "block_size": matrix.form.block, "gather_axis": 0, "quantize_axis": 2}
    inputs = [matrix.codes, node.inputs[1], scales.outputs[0]]
    gathered = ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)
    width = constant(model, f"{stem}.row_shape", ir.tensor([0, 0, matrix.k], dtype=ir.DataType.INT64))
    row = ir.node("Reshape", [gathered.outputs[0], width])
    model.graph.insert_before(node, [scales, gathered])
    replace(model, [node.outputs[0]], row.outputs, at=node, node=row)
