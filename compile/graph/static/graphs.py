"""From the lowered graph to a folder of static, fully quantised graphs for an NPU; knows no library.

Prefill of a chunk and decoding of one token are two graphs with shared weights, both split into parts of some layers.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from megrez.calibration.reference.model import EMBED_TOKENS
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.explicit_attention import ExplicitAttention, is_mask
from megrez.compile.graph.passes.graph import name_of, operand
from megrez.compile.graph.passes.quantize_activations import QuantizeActivations
from megrez.compile.graph.passes.static_shapes import StaticShapes
from megrez.compile.graph.rope import rotary_tables
from megrez.compile.graph.static.observe import CAPACITY, Observed, assumed, observe
from megrez.compile.graph.static.parts import ROTARY, LayerRange, head_part, layers_part, split_layers
from megrez.compile.report import Report
from megrez.engines.onnx_files import data_bytes, write_onnx
from megrez.engines.qnn import EMBEDDING_FILE, ROTARY_FILE
from megrez.engines.qnn.affine import affine_of
from megrez.engines.qnn.layout import DECODE, HEAD, PREFILL, Layout, graph_name

# Weights of a part: a fraction of an NPU context's limit, and of the memory that compiling it takes here.
PART_BYTES = 640 << 20
# What a mask adds to the scores of masked positions, at most; and by how much they must be below all others.
MASKED, MARGIN = -100.0, 20.0
# Rows of the embedding that are quantised at a time.
ROWS = 4096


def static_graph(model: ir.Model, config: ModelConfig, tokens: int, capacity: int) -> ir.Model:
    """A copy of the lowered graph for steps of `tokens` tokens and a cache of `capacity`."""
    graph = model.clone()
    sizes = {"batch": 1, "sequence": tokens, "capacity": capacity}
    for one in (StaticShapes(sizes), ExplicitAttention(config), common.RemoveUnusedNodesPass()):
        one(graph)
    return graph


def write_static_graphs(
    model: ir.Model,
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64] | None,
    folder: Path,
    *,
    context: int,
    chunk: int,
    report: Report,
) -> Layout:
    """Write the graphs, their weights, the host's lookup tables, and npu.json.

    tokens: samples [S, T] on which the range of every value is observed; None takes one fixed range for all.
    chunk: prompt tokens per step. Raises CheckpointError where a value is not finite on the samples.
    """
    config, layers = checkpoint.config, checkpoint.config.num_hidden_layers
    observed = assumed(layers) if tokens is None else _observe(model, checkpoint, tokens, report)
    steps = {DECODE: static_graph(model, config, 1, context), PREFILL: static_graph(model, config, chunk, context)}
    one_layer = max(1, data_bytes(layers_part(steps[DECODE], LayerRange(first=0, stop=1))))
    ranges = split_layers(layers, one_layer, PART_BYTES)
    total = layers * one_layer + data_bytes(head_part(steps[DECODE], layers))
    report.stage(f"writing {total / 1e9:.2f} GB of weights as graphs of {chunk} tokens and of one")
    written = report.weights(total)
    quantize = QuantizeActivations(observed.ranges, observed.caches, _masked(steps[DECODE], observed))
    for index, part in enumerate(ranges):
        decode, prefill = (layers_part(steps[kind], part) for kind in (DECODE, PREFILL))
        for one in (decode, prefill):
            quantize(one)
        write_onnx(decode, folder, file=f"{graph_name(DECODE, index)}.onnx", progress=written)
        _share_weights(decode, prefill)
        write_onnx(prefill, folder, file=f"{graph_name(PREFILL, index)}.onnx")
    head = head_part(steps[DECODE], layers)
    quantize(head)
    write_onnx(head, folder, file=f"{HEAD}.onnx", progress=written)
    _write_tables(checkpoint, observed, folder, context)
    layout = Layout(chunk=chunk, parts=len(ranges), logits=affine_of(*observed.ranges["logits"]), compiled=None)
    layout.write(folder)
    return layout


def _observe(model: ir.Model, checkpoint: Checkpoint, tokens: NDArray[np.int64], report: Report) -> Observed:
    config = checkpoint.config
    report.stage(f"observing the range of every value on {tokens.size} tokens")
    graph = static_graph(model, config, tokens.shape[1], CAPACITY)
    return observe(graph, checkpoint, tokens, report.layers(config.num_hidden_layers))


def _masked(graph: ir.Model, observed: Observed) -> float:
    """Low enough that every score is above the masked ones, and no lower: the range has only 16 bits."""
    masks = [value for value in graph.graph.inputs if is_mask(value)]
    sums = [node for mask in masks for node, _ in mask.uses()]
    scores = [name_of(operand(node, 0)) for node in sums]
    spread = max(high - low for low, high in map(observed.ranges.__getitem__, scores))
    return min(MASKED, -(spread + MARGIN))


def _share_weights(written: ir.Model, other: ir.Model) -> None:
    """Let `other` refer to the weights in the file of `written`."""
    for name, value in other.graph.initializers.items():
        shared = written.graph.initializers.get(name)
        if shared is not None and isinstance(shared.const_value, ir.ExternalTensor):
            value.const_value = shared.const_value


def _write_tables(checkpoint: Checkpoint, observed: Observed, folder: Path, context: int) -> None:
    embedding = checkpoint.read(EMBED_TOKENS)
    _write_codes(folder / EMBEDDING_FILE, embedding, observed.ranges["hidden.0"])
    del embedding
    tables = zip(rotary_tables(checkpoint.config, context), ROTARY, strict=True)
    codes = [affine_of(*observed.ranges[name]).encode(table) for table, name in tables]
    with (folder / ROTARY_FILE).open("wb") as file:
        np.lib.format.write_array(file, np.stack(codes), allow_pickle=False)


def _write_codes(path: Path, table: NDArray[np.float32], value_range: tuple[float, float]) -> None:
    """Quantise and write a table, some rows at a time."""
    affine = affine_of(*value_range)
    header = {"descr": affine.dtype.newbyteorder("<").str, "fortran_order": False, "shape": table.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(table), ROWS):
            affine.encode(table[start : start + ROWS]).tofile(file)
