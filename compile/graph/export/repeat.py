"""Repeat the layers of a traced graph: torch traces two layers in seconds, and 32 alike in a minute."""

import itertools
import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

OF_LAYER = re.compile(r"(?<=^model\.layers\.)\d+(?=\.)|(?<=^past_key_values\.)\d+(?=\.)|(?<=^present\.)\d+(?=\.)")


def repeat_layers(model: ir.Model, order: Sequence[int]) -> None:
    """The graph of len(order) + 1 layers, in place: layer n is the traced layer order[n], and the last the last traced.

    Every layer gets weights and caches of its own, named by its number. What changes from layer to layer is the
    residual stream; a layer's nodes are those from its input_layernorm to the next layer's. order: every traced layer
    but the last, each for the first time after those before it.
    """
    graph, nodes = model.graph, list(model.graph)
    traced = len(set(order)) + 1
    weights = [graph.initializers[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(traced)]
    norms = [weight.consumers()[0] for weight in weights]
    streams = [_stream(norm) for norm in norms]
    bounds = [*map(nodes.index, norms), len(nodes)]
    parts = [nodes[start:stop] for start, stop in itertools.pairwise(bounds)]
    _renumber(graph, {layer: (*order, traced - 1).index(layer) for layer in range(traced)})
    stream = streams[0]
    for number, layer in enumerate(order):
        if layer in order[:number]:
            stream = _copy(parts[layer], number, {streams[layer]: stream}, norms[-1])[streams[layer + 1]]
        else:
            _read_instead(parts[layer], streams[layer], stream)
            stream = streams[layer + 1]
    _read_instead(parts[-1], streams[-1], stream)
    graph.sort()
    _sort_by_layer(graph)


def _stream(norm: ir.Node) -> ir.Value:
    value = norm.inputs[0]
    assert value is not None
    return value


def _read_instead(nodes: Sequence[ir.Node], old: ir.Value, new: ir.Value) -> None:
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(index, new)


def _copy(
    nodes: Sequence[ir.Node], number: int, copies: dict[ir.Value, ir.Value], before: ir.Node
) -> dict[ir.Value, ir.Value]:
    """Insert copies of a layer's nodes as layer `number`; `copies`, by the original: what they read and write."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    for node in nodes:
        for value in node.inputs:
            if value is None or value in copies or value.producer() is not None or not OF_LAYER.search(str(value.name)):
                continue
            copies[value] = _copied(value, number)
            if value.is_initializer():
                graph.initializers.add(copies[value])
            else:
                graph.inputs.append(copies[value])
        copies |= {value: _copied(value, number) for value in node.outputs}
        inputs = [None if value is None else copies.get(value, value) for value in node.inputs]
        outputs = [copies[value] for value in node.outputs]
        name, attributes = f"{node.name}.layer{number}", node.attributes.values()
        copied = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=name)
        graph.insert_before(before, copied)
        graph.outputs.extend(copies[value] for value in node.outputs if value.is_graph_output())
    return copies


def _copied(value: ir.Value, number: int) -> ir.Value:
    name = str(value.name)
    renamed = OF_LAYER.sub(str(number), name)
    # Passes name what they add to a value by its name and a number.
    name = f"{name}.layer{number}" if renamed == name else renamed
    return ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)


def _renumber(graph: ir.Graph, numbers: dict[int, int]) -> None:
    """Give the traced layers their numbers: the last first, whose number is the largest."""
    values = [*graph.initializers.values(), *graph.inputs, *graph.outputs]
    for layer in sorted(numbers, reverse=True):
        for value in values:
            match = OF_LAYER.search(str(value.name))
            if match is not None and int(match[0]) == layer:
                value.name = OF_LAYER.sub(str(numbers[layer]), str(value.name))


def _sort_by_layer(graph: ir.Graph) -> None:
    for values in (graph.inputs, graph.outputs):
        values[:] = _by_layer(values)
    initializers = _by_layer(graph.initializers.values())
    graph.initializers.clear()
    for value in initializers:
        graph.initializers.add(value)


def _by_layer(values: Iterable[ir.Value]) -> list[ir.Value]:
    """Those of layers by their number, where the first of them is."""
    values = list(values)
    numbers = [OF_LAYER.search(str(value.name)) for value in values]
    first = next((index for index, number in enumerate(numbers) if number), len(values))
    keys = [(index, -1) if number is None else (first, int(number[0])) for index, number in enumerate(numbers)]
    return [value for _, value in sorted(zip(keys, values, strict=True), key=lambda pair: pair[0])]
