"""A layer of quantised products becomes one DecoderLayer, an ONNX function of the operators it replaces.

A runtime with a kernel for megrez::DecoderLayer (engines/ort/kernels/decoder_layer.c) uses it, any other inlines the
function. Knows no weights.
"""

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from megrez.compile.graph.passes.block_means import BLOCK_SHAPE
from megrez.compile.graph.passes.block_means import NAME as MEANS
from megrez.compile.graph.passes.cache_format import OPERATORS
from megrez.compile.graph.passes.graph import MEGREZ, MICROSOFT, only_consumer, operand, producer, replace
from megrez.compile.graph.passes.quantize_weights import INT8_ARITHMETIC
from megrez.compile.graph.passes.swiglu import NAME as SWIGLU
from megrez.compile.graph.passes.swiglu import OPSET

NAMES = {
    OPERATORS["float32"]: "DecoderLayer",
    OPERATORS["float16"]: "DecoderLayerFloat16",
    OPERATORS["int8"]: "DecoderLayerInt8",
}
PRODUCTS = "query", "key", "value", "output", "gate_up", "down"
PROJECTIONS = PRODUCTS[:3]
PRODUCT_TYPES = "MatMulNBits", MEANS
# A product's inputs after the first, by their place: the fourth, g_idx, is never there.
WEIGHTS = {1: "codes", 2: "scales", 3: "zero_points", 5: "bias"}
ATTRIBUTES = "N", "K", "bits", "block_size"
# GroupQueryAttention's inputs, of which the layer has hidden and the two norms in place of query, key and value.
ATTENTION_INPUTS = (
    *("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
    *("cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale"),
    *("q_norm_weight", "k_norm_weight", "query_seqlens"),
)
LAYER_INPUTS = ("hidden", "attention_norm", "mlp_norm", *ATTENTION_INPUTS[3:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The nodes of one layer.

    projections: the products of query, key and value, and the widths of the parts into which one is split. last: the
    second residual Add.
    """

    norms: tuple[ir.Node, ir.Node]
    projections: dict[ir.Node, tuple[int, ...]]
    attention: ir.Node
    output: ir.Node
    gate_up: ir.Node
    down: ir.Node
    last: ir.Node

    @property
    def hidden(self) -> ir.Value:
        return operand(self.norms[0], 0)

    @property
    def products(self) -> dict[str, ir.Node]:
        """A projection of several parts has the name of the first."""
        named: dict[str, ir.Node] = {}
        part = 0
        for node, widths in self.projections.items():
            named[PROJECTIONS[part]] = node
            part += max(1, len(widths))
        return named | {"output": self.output, "gate_up": self.gate_up, "down": self.down}

    @property
    def structure(self) -> tuple[object, ...]:
        """What layers with the same function have in common."""
        operators = tuple((name, node.op_type) for name, node in self.products.items())
        return operators, tuple(self.projections.values()), self.attention.op_type, tuple(self.attention.attributes)


class DecoderLayer(ir.passes.InPlacePass):
    """norm, products, GroupQueryAttention, Add, norm, product, SwiGLU, product, Add  ->  DecoderLayer.

    A model has one function: layers that differ in structure from most others stay as they are, and so does the last
    one, in which only some of the tokens go on.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [layer for node in model.graph if (layer := _layer(node)) is not None]
        most_common = Counter(layer.structure for layer in layers).most_common(1)
        fused = [layer for layer in layers if layer.structure == most_common[0][0]]
        for number, layer in enumerate(fused):
            node = _node(layer)
            if not number:
                function = _function(layer, node)
                model.functions[function.identifier()] = function
                model.opset_imports[MEGREZ] = 1
            old = [layer.last.outputs[0], *layer.attention.outputs[1:]]
            replace(model, old, node.outputs, at=layer.last, node=node)
        return ir.passes.PassResult(model, modified=bool(fused))


def _is_product(node: ir.Node | None) -> bool:
    level = None if node is None or node.op_type not in PRODUCT_TYPES else node.attributes.get("accuracy_level")
    return level is not None and level.as_int() == INT8_ARITHMETIC


def _next_product(value: ir.Value) -> ir.Node | None:
    """The product that alone reads `value`."""
    found = next((node for name in PRODUCT_TYPES if (node := only_consumer(value, name)) is not None), None)
    return found if _is_product(found) else None


def _layer(attention: ir.Node) -> Layer | None:
    """The layer around an attention; None where it has another form."""
    if (attention.domain, attention.op_type) not in NAMES or len(attention.inputs) != len(ATTENTION_INPUTS):
        return None
    projections, output = _parts(attention), _next_product(attention.outputs[0])
    if projections is None or output is None:
        return None
    norm = producer(next(iter(projections)).inputs[0], "RMSNormalization")
    added = only_consumer(output.outputs[0], "Add")
    if norm is None or added is None or norm.inputs[0] not in added.inputs:
        return None
    if {node for node, _ in norm.outputs[0].uses()} != set(projections):
        return None
    return _with_mlp(norm, projections, attention, output, added)


def _with_mlp(
    first: ir.Node, projections: dict[ir.Node, tuple[int, ...]], attention: ir.Node, output: ir.Node, added: ir.Node
) -> Layer | None:
    users = {node for node, _ in added.outputs[0].uses()}
    norm = next((node for node in users if node.op_type == "RMSNormalization"), None)
    gate_up = None if norm is None else _next_product(norm.outputs[0])
    gated = None if gate_up is None else only_consumer(gate_up.outputs[0], SWIGLU)
    down = None if gated is None else _next_product(gated.outputs[0])
    last = None if down is None else only_consumer(down.outputs[0], "Add")
    if norm is None or gate_up is None or down is None or last is None or users != {norm, last}:
        return None
    if norm.attributes["epsilon"].as_float() != first.attributes["epsilon"].as_float():
        return None
    return Layer(
        norms=(first, norm),
        projections=projections,
        attention=attention,
        output=output,
        gate_up=gate_up,
        down=down,
        last=last,
    )


def _parts(attention: ir.Node) -> dict[ir.Node, tuple[int, ...]] | None:
    """The products of query, key and value, in this order, with the widths of the parts into which one is split.

    None where a product has the parts in another order, or others read them.
    """
    packed = attention.inputs[1] is None
    values = [operand(attention, part) for part in range(1 if packed else 3)]
    found: dict[ir.Node, tuple[int, ...]] = {}
    while values:
        split = producer(values[0], "Split")
        of = list(split.outputs) if split is not None else values[:1]
        product = producer(values[0] if split is None else split.inputs[0], *PRODUCT_TYPES)
        if product is None or not _is_product(product) or values[: len(of)] != of:
            return None
        if any(only_consumer(value, attention.op_type) is not attention for value in of):
            return None
        found[product] = () if split is None else _sizes(split)
        values = values[len(of) :]
    return found


def _sizes(split: ir.Node) -> tuple[int, ...]:
    sizes = operand(split, 1).const_value
    assert sizes is not None
    return tuple(sizes.numpy().tolist())


def _node(layer: Layer) -> ir.Node:
    inputs = [layer.hidden, *(norm.inputs[1] for norm in layer.norms), *layer.attention.inputs[3:]]
    attributes = [*layer.attention.attributes.values(), layer.norms[0].attributes["epsilon"]]
    products = layer.products
    for name in PRODUCTS:
        node = products.get(name)
        given = [] if node is None else [*node.inputs, *[None] * (max(WEIGHTS) + 1 - len(node.inputs))]
        inputs += [given[at] if given else None for at in WEIGHTS]
        if node is not None:
            attributes += [
                ir.Attr(f"{name}_{attribute}", node.attributes[attribute].type, node.attributes[attribute].value)
                for attribute in _attributes_of(node)
            ]
    operator = NAMES[layer.attention.domain, layer.attention.op_type]
    return ir.Node(MEGREZ, operator, inputs, attributes, num_outputs=len(layer.attention.outputs))


def _attributes_of(product: ir.Node) -> tuple[str, ...]:
    return (*ATTRIBUTES, BLOCK_SHAPE) if product.op_type == MEANS else ATTRIBUTES


class _Body:
    """The operators of a function for layers like `layer`."""

    def __init__(self, layer: Layer) -> None:
        names = [*LAYER_INPUTS, *(f"{product}_{weight}" for product in PRODUCTS for weight in WEIGHTS.values())]
        self.layer, self.inputs = layer, {name: ir.Value(name=name) for name in names}
        self.nodes: list[ir.Node] = []

    def add(self, node: ir.Node) -> ir.Value:
        self.nodes.append(node)
        return node.outputs[0]

    def norm(self, x: ir.Value, weight: str) -> ir.Value:
        attributes = [ir.AttrInt64("axis", -1), ir.RefAttr("epsilon", "epsilon", ir.AttributeType.FLOAT)]
        return self.add(ir.Node("", "RMSNormalization", [x, self.inputs[weight]], attributes))

    def product(self, x: ir.Value, name: str) -> ir.Value:
        like = self.layer.products[name]
        weights = [self.inputs[f"{name}_{weight}"] for weight in WEIGHTS.values()]
        attributes = [
            ir.RefAttr(attribute, f"{name}_{attribute}", like.attributes[attribute].type)
            for attribute in _attributes_of(like)
        ]
        level = ir.AttrInt64("accuracy_level", INT8_ARITHMETIC)
        return self.add(ir.Node(like.domain, like.op_type, [x, *weights[:3], None, weights[3]], [*attributes, level]))

    def attention(self, x: ir.Value) -> ir.Node:
        """The attention, whose outputs are the attended values and the caches, with the projections of x before it."""
        heads: list[ir.Value | None] = []
        for name, widths in zip(self.layer.products, self.layer.projections.values(), strict=False):
            y = self.product(x, name)
            if widths:
                sizes = self.add(ir.node("Constant", [], {"value_ints": list(widths)}))
                split = ir.node("Split", [y, sizes], {"axis": -1}, num_outputs=len(widths))
                self.nodes.append(split)
                heads += split.outputs
            else:
                heads.append(y)
        heads += [None] * (len(PROJECTIONS) - len(heads))
        like = self.layer.attention
        attributes = [ir.RefAttr(key, key, attribute.type) for key, attribute in like.attributes.items()]
        cache = [self.inputs[name] for name in LAYER_INPUTS[3:]]
        node = ir.Node(like.domain, like.op_type, [*heads, *cache], attributes, num_outputs=len(like.outputs))
        self.nodes.append(node)
        return node


def _function(layer: Layer, node: ir.Node) -> ir.Function:
    """`node` as the operators of `layer`, of which it has the attributes."""
    body = _Body(layer)
    hidden = body.inputs["hidden"]
    attention = body.attention(body.norm(hidden, "attention_norm"))
    total = body.add(ir.node("Add", [hidden, body.product(attention.outputs[0], "output")]))
    gated = body.add(ir.node(SWIGLU, [body.product(body.norm(total, "mlp_norm"), "gate_up")], domain=MEGREZ))
    last = body.add(ir.node("Add", [total, body.product(gated, "down")]))
    graph = ir.Graph(
        list(body.inputs.values()),
        [last, *attention.outputs[1:]],
        nodes=body.nodes,
        opset_imports={"": OPSET, MICROSOFT: 1, MEGREZ: 1, layer.attention.domain: 1},
        name=node.op_type,
    )
    attributes = [ir.Attr(name, attribute.type, None) for name, attribute in node.attributes.items()]
    return ir.Function(MEGREZ, node.op_type, graph=graph, attributes=attributes)
