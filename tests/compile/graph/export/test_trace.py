"""The canonical graph computes what transformers computes, from standard ops, and tracing it reads no weight."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.huggingface import HuggingFaceCheckpoint
from megrez.compile.families.config import read_config
from megrez.compile.families.registry import families
from megrez.compile.graph.dialects import lower
from megrez.compile.graph.export.trace import trace
from megrez.compile.graph.rope import rotary_tables
from megrez.compile.graph.weights import bind
from megrez.engines.onnx_files import data_bytes, write_onnx
from megrez.engines.targets import TARGETS
from tests.graphs import CONTEXT, IDS, canonical, op_counts, ragged
from tests.reference import logits
from tests.traces import traced

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CASES: dict[str, dict[str, Any]] = {
    **{family.model_type: {"family": family.model_type} for family in families()},
    "llama-tied": {"tied": True},
    "llama-biases": {"biases": True},
    "llama-linear": {"rope": {"rope_type": "linear", "factor": 4.0}},
    "llama-llama3": {"rope": LLAMA3},
    "llama-yarn": {"rope": YARN},
    "mistral-window-tied": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows-tied": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows-biases-tied": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}


class Graph:
    """A canonical graph as `build` writes it, and the caches that it hands from step to step."""

    def __init__(self, folder: Path, rows: int, kv_heads: int = 2, head_dim: int = 32, capacity: int = 24) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        names = [entry.name for entry in self.session.get_inputs() if entry.name.startswith("past_key_values")]
        rubbish = np.random.default_rng(3).normal(0, 30, (rows, kv_heads, capacity, head_dim)).astype(np.float32)
        self.caches = {name: rubbish for name in names}

    def step(self, tokens: list[list[int]], starts: list[int], logits_index: list[int]) -> NDArray[np.float32]:
        feeds = {"input_ids": tokens, "write_indices": starts, "logits_index": logits_index}
        arrays = {name: np.array(value, np.int64) for name, value in feeds.items()}
        found, *caches = self.session.run(None, {**arrays, **self.caches})
        self.caches = dict(zip(self.caches, caches, strict=True))
        return np.asarray(found)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, checkpoint_of: Any, tmp_path_factory: Any) -> Iterator[tuple[Path, Path]]:
    """A checkpoint's folder, and one with its canonical graph."""
    folder = checkpoint_of(**CASES[request.param])
    written = tmp_path_factory.mktemp(request.param)
    write_onnx(canonical(open_checkpoint(str(folder))), written)
    yield folder, written


def test_one_piece_agrees_with_transformers(case: tuple[Path, Path]) -> None:
    folder, written = case
    found = Graph(written, rows=1).step([IDS[0]], [0], list(range(16)))
    np.testing.assert_allclose(found, logits(folder, IDS[0]), rtol=0, atol=1e-4)


def test_ragged_chunks_agree_with_transformers_and_read_no_unwritten_slot(case: tuple[Path, Path]) -> None:
    folder, written = case
    rows = ragged(Graph(written, rows=2).step)
    assert [len(row) for row in rows] == [16, 11]
    for row, ids in zip(rows, IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids[: len(row)]), rtol=0, atol=1e-4)


def test_only_the_rows_asked_for_in_the_order_asked_for(case: tuple[Path, Path]) -> None:
    folder, written = case
    found = Graph(written, rows=1).step([IDS[0]], [0], [15, 2, 2])
    np.testing.assert_allclose(found, logits(folder, IDS[0])[[15, 2, 2]], rtol=0, atol=1e-4)
    assert Graph(written, rows=1).step([IDS[0]], [0], []).shape == (0, 320)


def test_the_file_is_valid_onnx_of_standard_operators(case: tuple[Path, Path]) -> None:
    path = case[1] / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 24)}
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0


def test_the_graph_is_fused_as_far_as_standard_operators_go(checkpoint_of: Any) -> None:
    config = open_checkpoint(str(checkpoint_of(family="qwen3"))).config
    counts = op_counts(traced(config))
    # Two layers of two norms each for hidden states and for heads, and the last norm.
    assert {name: counts[name] for name in ("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization")} == {
        "Attention": 2,
        "TensorScatter": 4,
        "RotaryEmbedding": 4,
        "RMSNormalization": 9,
    }
    assert counts["MatMul"] == 15
    assert not {"Cast", "Expand", "Tile", "Concat"} & set(counts)


def test_the_interface_is_named_and_shaped_as_the_docstring_says(checkpoint_of: Any) -> None:
    model = traced(open_checkpoint(str(checkpoint_of())).config)
    cache = "[batch,2,capacity,32]"
    kinds = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    assert [(value.name, str(value.dtype), str(value.shape)) for value in model.graph.inputs] == [
        ("input_ids", "INT64", "[batch,sequence]"),
        ("write_indices", "INT64", "[batch]"),
        ("logits_index", "INT64", "[num_logits]"),
        *((f"past_key_values.{kind}", "FLOAT", cache) for kind in kinds),
    ]
    assert [(value.name, str(value.shape)) for value in model.graph.outputs] == [
        ("logits", "[num_logits,320]"),
        *((f"present.{kind}", cache) for kind in kinds),
    ]


# A trace takes seconds: here is that of the model from which most is left out. What the other cases' graphs compute is
# compared with transformers above.
QUICK = ("one-layer",)


@pytest.mark.parametrize(
    "case",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in {**CASES, "one-layer": {}} if name not in QUICK)],
)
def test_a_graph_that_other_tests_copy_is_the_one_that_is_traced(checkpoint_of: Any, case: str) -> None:
    shape: dict[str, Any] = {**CASES, "one-layer": {"layers": 1}}[case]
    config = open_checkpoint(str(checkpoint_of(**shape))).config
    assert plain(traced(config, context=7)) == plain(trace(config, 7))


def plain(model: ir.Model) -> str:
    """All of a graph but the names that torch gives, which depend on sizes and on what else was traced."""
    named = {*model.graph.outputs, *(value for name, value in model.graph.initializers.items() if "." in name)}
    constants = [value for name, value in model.graph.initializers.items() if "." not in name]
    values = [*constants, *(value for node in model.graph for value in node.outputs)]
    for number, value in enumerate(values):
        if value not in named:
            value.name = f"value{number}"
    for node in model.graph:
        node.name = "node"
    return re.sub(r", name=[^)]*", "", str(model))


class Unreadable(HuggingFaceCheckpoint):
    """A checkpoint that is not to be read."""

    def read(self, name: str) -> NDArray[np.float32]:
        raise AssertionError(f"{name} was read")

    rows = blocks = read  # type: ignore[assignment]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_no_weight_is_read_before_it_is_written(checkpoint_of: Any, tmp_path: Path, target: Any) -> None:
    checkpoint = Unreadable(checkpoint_of(), source="tiny")
    model = traced(checkpoint.config)
    bind(model, checkpoint, CONTEXT)
    lower(model, checkpoint, target, lambda name: 0.1)
    assert data_bytes(model) > 0
    with pytest.raises(Exception, match="was read"):
        write_onnx(model, tmp_path)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 5e6}, CASES["llama-linear"]["rope"], LLAMA3, YARN]
)
def test_rotary_tables_are_those_of_transformers(rope: dict[str, Any]) -> None:
    shape = {
        "hidden_size": 96,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 8,
        "max_position_embeddings": 4096,
    }
    theirs = transformers.AutoConfig.for_model("llama", **shape, rope_parameters={"rope_theta": 10000.0, **rope})
    theirs.architectures = ["LlamaForCausalLM"]
    module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config=theirs)
    positions = torch.arange(4096)[None]
    expected = [table[0, :, :32].numpy() for table in module(torch.zeros(1), positions)]
    found = rotary_tables(read_config(theirs.to_dict()), 4096)
    for ours, table in zip(found, expected, strict=True):
        assert ours.shape == (4096, 32) and ours.dtype == np.float32
        np.testing.assert_allclose(ours, table, rtol=0, atol=1e-6)
