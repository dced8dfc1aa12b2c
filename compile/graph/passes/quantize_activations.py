"""Quantise every tensor of a static graph: QuantizeLinear and DequantizeLinear around each operator.

For engines that compute in integers throughout. Reads the weights that are not matrices; knows no engine.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from megrez.compile.graph.passes.explicit_attention import is_mask
from megrez.compile.graph.passes.graph import constant, name_of, operand
from megrez.engines.qnn.affine import Affine, affine_of

# Operators that only move data keep the codes: their inputs and outputs share a scale.
MOVES = ("Concat", "Reshape", "Split", "Transpose")
PAST = "past_key_values."
TYPES = {8: ir.DataType.UINT8, 16: ir.DataType.UINT16}
# The output scale that Hexagon NPUs use whatever the graph has: 0 to almost 1.
FIXED = dict.fromkeys(("Sigmoid", "Softmax"), Affine(bits=16, scale=2.0**-16, zero_point=0))
# The smallest and the largest element of a value, by its name.
Ranges = Mapping[str, tuple[float, float]]


class QuantizeActivations(ir.passes.InPlacePass):
    """Inputs and outputs are codes too, which the host writes and reads. Matrices are quantised already.

    ranges: of every float32 value of the graph. caches: scale and zero point of "0.key" and so on; an Identity from
    ExplicitAttention converts new keys and values to them. masked: what a mask adds to the scores of masked
    positions.
    """

    def __init__(self, ranges: Ranges, caches: Mapping[str, Affine], masked: float) -> None:
        super().__init__()
        self.ranges, self.caches, self.masked = ranges, caches, masked

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type != "DequantizeLinear"]
        emit = _Emitter(model)
        affines = self._affines(model, nodes)
        read = {value for node in nodes for value in node.inputs if value is not None and _is_float(value)}
        for value in [value for value in model.graph.initializers.values() if value in read]:
            emit.constant(value)
        for value in model.graph.inputs:
            emit.input(value, affines[value])
        for node in nodes:
            for value in filter(_is_float, node.outputs):
                emit.output(node, value, affines[value])
            if node.op_type == "Identity":
                node.outputs[0].replace_all_uses_with(operand(node, 0))
                model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=True)

    def _affines(self, model: ir.Model, nodes: list[ir.Node]) -> dict[ir.Value, Affine]:
        """By every input and every node's output."""
        values = [*model.graph.inputs, *(value for node in nodes for value in node.outputs if _is_float(value))]
        found: dict[ir.Value, Affine] = {}
        for group in _groups(values, nodes):
            found |= dict.fromkeys(group, self._affine(group))
        return found

    def _affine(self, group: list[ir.Value]) -> Affine:
        for value in group:
            if (name := name_of(value)).startswith(PAST):
                return self.caches[name.removeprefix(PAST)]
            if (node := value.producer()) is not None and node.op_type in FIXED:
                return FIXED[node.op_type]
        lows, highs = zip(*map(self._range, group), strict=True)
        return affine_of(min(lows), max(highs))

    def _range(self, value: ir.Value) -> tuple[float, float]:
        if is_mask(value):
            return self.masked, 0.0
        node = value.producer()
        if node is None or not any(is_mask(one) for one in node.inputs if one is not None):
            return self.ranges[name_of(value)]
        scores = next(one for one in node.inputs if one is not None and not is_mask(one))
        low, high = self.ranges[name_of(scores)]
        return low + self.masked, high


def _groups(values: list[ir.Value], nodes: list[ir.Node]) -> list[list[ir.Value]]:
    """`values` in groups that share a scale and zero point."""
    group_of = {value: [value] for value in values}
    for node in nodes:
        if node.op_type in MOVES:
            group = group_of[node.outputs[0]]
            for value in (*node.inputs, *node.outputs):
                if value in group_of and group_of[value] is not group:
                    group += group_of[value]
                    group_of |= dict.fromkeys(group_of[value], group)
    return list({id(group): group for group in group_of.values()}.values())


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


class _Emitter:
    """Replaces values by codes: consumers of a value read its DequantizeLinear."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._parameters: dict[Affine, list[ir.Value]] = {}

    def constant(self, value: ir.Value) -> None:
        """Quantise a weight that is not a matrix."""
        assert value.const_value is not None
        values = value.const_value.numpy()
        affine = affine_of(float(values.min()), float(values.max()))
        codes = ir.tensor(affine.encode(values), name=f"{value.name}.codes")
        stored = constant(self.model, f"{value.name}.codes", codes)
        self._read_instead(value, stored, affine)
        self.model.graph.initializers.pop(name_of(value))

    def input(self, value: ir.Value, affine: Affine) -> None:
        value.type = ir.TensorType(TYPES[affine.bits])  # a clone may share the old one
        self._read_instead(value, value, affine)

    def output(self, node: ir.Node, value: ir.Value, affine: Affine) -> None:
        name, is_output = name_of(value), value in self.model.graph.outputs
        value.name = f"{name}.float"
        quantize = ir.node("QuantizeLinear", [value, *self._grid(affine)])
        codes = quantize.outputs[0]
        codes.name, codes.dtype, codes.shape = name if is_output else f"{name}.codes", TYPES[affine.bits], value.shape
        users = [(user, index) for user, index in value.uses() if user is not quantize]
        dequantize = self._dequantize(codes, affine)
        self.model.graph.insert_after(node, [quantize, dequantize])
        for user, index in users:
            user.replace_input_with(index, dequantize.outputs[0])
        if is_output:
            outputs = self.model.graph.outputs
            outputs[outputs.index(value)] = codes
        if not users:
            self.model.graph.remove(dequantize, safe=True)

    def _read_instead(self, value: ir.Value, codes: ir.Value, affine: Affine) -> None:
        users = list(value.uses())
        node = self._dequantize(codes, affine)
        for user, index in users:
            user.replace_input_with(index, node.outputs[0])
        self.model.graph.insert_before(self.model.graph[0], node)

    def _dequantize(self, codes: ir.Value, affine: Affine) -> ir.Node:
        node = ir.node("DequantizeLinear", [codes, *self._grid(affine)])
        node.outputs[0].name = f"{codes.name}.dequantized"
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, codes.shape
        return node

    def _grid(self, affine: Affine) -> list[ir.Value]:
        """Scale and zero point as initializers."""
        if affine not in self._parameters:
            stem = f"grid_{len(self._parameters)}"
            values = {"scale": np.array(affine.scale, np.float32), "zero": np.array(affine.zero_point, affine.dtype)}
            self._parameters[affine] = [
                constant(self.model, f"{stem}.{kind}", ir.tensor(value, name=f"{stem}.{kind}"))
                for kind, value in values.items()
            ]
        return self._parameters[affine]
