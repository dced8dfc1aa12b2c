"""Quantised products are within the rounding of int8 activations of those with the decoded weights."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.graph.passes.quantize_weights import QuantizeWeights
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.targets import find_target
from tests.graphs import FakeCheckpoint, op_counts, parse, run
from tests.quantized import activation_error, decode

RANDOM = np.random.default_rng(0)
PROJ, BIAS, HEAD, EMBED = "l.q_proj.weight", "l.q_proj.bias", "lm_head.weight", "model.embed_tokens.weight"
K = 256
TENSORS: dict[str, NDArray[np.float32]] = {
    name: RANDOM.normal(size=shape).astype(np.float32)
    for name, shape in {PROJ: (24, K), BIAS: (24,), HEAD: (40, K), EMBED: (40, K)}.items()
}
X = RANDOM.normal(size=(2, 3, K)).astype(np.float32)
TARGETS = ["cpu-int8", "cpu-int4"]
# By the columns, the block of a 4-bit head's common rows and of the rest: of 96 columns 32 and 32 store the least.
HEAD_BLOCKS = {K: (128, 256), 96: (32, 32), 90: (32, 32)}
PROJECT = f'agraph (float[B,T,{K}] x, float[{K},24] "{PROJ}", float[24] "{BIAS}") => (float[B,T,24] y)'


def tied(k: int) -> str:
    """The embedding's rows and their products with all rows."""
    return (
        f'agraph (int64[B,T] ids, float[40,{k}] "{EMBED}") => (float[B,T,{k}] e, float[B,T,40] y) '
        f'{{ e = Gather("{EMBED}", ids) h = Transpose<perm=[1, 0]>("{EMBED}") y = MatMul(e, h) }}'
    )


def quantize(text: str, target: str, checkpoint: Any = None) -> tuple[ir.Model, FakeCheckpoint]:
    checkpoint = checkpoint or FakeCheckpoint(TENSORS)
    model = parse(text, checkpoint.tensors)
    assert QuantizeWeights(Quantizer(checkpoint), Precision(checkpoint, find_target(target)))(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert checkpoint.reads == []
    return model, checkpoint


def stored(model: ir.Model, stem: str, bits: int, block: int) -> NDArray[np.float64]:
    """The matrix as the initializers tell it."""
    arrays = {}
    for part in ("codes", "scales", "zero_points"):
        value = model.graph.initializers.get(f"{stem}.{part}")
        arrays[part] = value.const_value.numpy() if value is not None and value.const_value is not None else None
    return decode(arrays["codes"], arrays["scales"], arrays["zero_points"], bits=bits, block=block)  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "bits", "block"), [("cpu-int8", 8, 32), ("cpu-int4", 4, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_projection(target: str, bits: int, block: int, bias: bool) -> None:
    nodes = f'm = MatMul(x, "{PROJ}") y = Add(m, "{BIAS}")' if bias else f'y = MatMul(x, "{PROJ}")'
    model, _ = quantize(f"{PROJECT} {{ {nodes} }}", target)
    assert op_counts(model) == {"MatMulNBits": 1}
    (node,) = model.graph
    weights = stored(model, "l.q_proj", bits, block)[:, :K]
    # Two steps of the coarsest block: a code in the wrong place is off by far more.
    assert np.abs(weights - TENSORS[PROJ]).max() < 2 * np.abs(TENSORS[PROJ]).max() / 2 ** (bits - 1)
    assert (len(node.inputs), node.attributes["accuracy_level"].as_int()) == (6 if bias else 4 - (bits == 8), 4)
    expected = X.astype(np.float64) @ weights.T + (TENSORS[BIAS] if bias else 0)
    error = np.abs(run(model, {"x": X})["y"] - expected)
    assert (error <= activation_error(X, weights, block)).all()


def test_the_float_matrix_is_gone_and_a_residual_is_no_bias() -> None:
    text = (
        f'agraph (float[B,T,{K}] x, float[B,T,24] r, float[{K},24] "{PROJ}") => (float[B,T,24] y) '
        f'{{ m = MatMul(x, "{PROJ}") y = Add(m, r) }}'
    )
    model, _ = quantize(text, "cpu-int4")
    assert op_counts(model) == {"Add": 1, "MatMulNBits": 1}
    assert set(model.graph.initializers) == {f"l.q_proj.{part}" for part in ("codes", "scales", "zero_points")}


def head_of(model: ir.Model, k: int) -> NDArray[np.float64]:
    """A 4-bit head [40, k]: the first 32nd of its rows has 8 bits."""
    finer, coarser = HEAD_BLOCKS[k]
    common, rest = stored(model, "lm_head.common", 8, finer)[:, :k], stored(model, "lm_head", 4, coarser)[:, :k]
    assert (len(common), len(rest)) == (1, 39)
    return np.concatenate([common, rest])


def assert_near(weights: NDArray[np.float64], matrix: NDArray[np.float32], bits: int) -> None:
    assert np.abs(weights - matrix).max() < 2 * np.abs(matrix).max() / 2 ** (bits - 1)


@pytest.mark.parametrize(("target", "block"), [("cpu-int8", 32), ("cpu-int4", 256)])
def test_a_head(target: str, block: int) -> None:
    text = f'agraph (float[N,{K}] x, float[{K},40] "{HEAD}") => (float[N,40] y) {{ y = MatMul(x, "{HEAD}") }}'
    model, _ = quantize(text, target)
    weights = stored(model, "lm_head", 8, block) if target == "cpu-int8" else head_of(model, K)
    assert_near(weights[:1], TENSORS[HEAD][:1], 8)
    assert_near(weights, TENSORS[HEAD], 8 if target == "cpu-int8" else 4)
    error = np.abs(run(model, {"x": X[0]})["y"] - X[0].astype(np.float64) @ weights.T)
    assert (error <= activation_error(X[0], weights, block)).all()


@pytest.mark.parametrize("k", HEAD_BLOCKS)
def test_a_coarser_tied_head_leaves_the_embedding_in_eight_bits(k: int) -> None:
    matrix = TENSORS[EMBED][:, :k]
    model, _ = quantize(tied(k), "cpu-int4", FakeCheckpoint({EMBED: matrix}))
    table, weights = stored(model, "model.embed_tokens", 8, HEAD_BLOCKS[k][0])[:, :k], head_of(model, k)
    assert_near(table, matrix, 8)
    assert_near(weights, matrix, 4)
    ids = np.array([[0, 39, 7], [7, 21, 1]])
    found = run(model, {"ids": ids})
    np.testing.assert_allclose(found["e"], table[ids], rtol=0, atol=1e-6)
    error = np.abs(found["y"] - table[ids] @ weights.T)
    assert (error <= activation_error(found["e"], weights, HEAD_BLOCKS[k][1])).all()


@pytest.mark.parametrize(("k", "block"), [(K, 32), (96, 32), (90, 32), (80, 16)])
def test_a_tied_head_shares_the_embeddings_codes(k: int, block: int) -> None:
    matrix = TENSORS[EMBED][:, :k]
    model, _ = quantize(tied(k), "cpu-int8", FakeCheckpoint({EMBED: matrix}))
    padded = {"Slice": 1} if k % block else {}
    assert op_counts(model) == {"GatherBlockQuantized": 1, "MatMulNBits": 1, "Reshape": 2, **padded}
    codes = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.UINT8]
    assert [(value.name, len(value.uses())) for value in codes] == [("model.embed_tokens.codes", 2)]
    weights = stored(model, "model.embed_tokens", 8, block)[:, :k]
    ids = np.array([[0, 39, 7], [7, 21, 1]])
    found = run(model, {"ids": ids})
    np.testing.assert_allclose(found["e"], weights[ids], rtol=0, atol=1e-6)
    assert np.abs(weights - matrix).max() < 2 * np.abs(matrix).max() / 128
    error = np.abs(found["y"] - weights[ids] @ weights.T)
    assert (error <= activation_error(found["e"], weights, block)).all()


def test_float_targets_keep_their_matrices() -> None:
    model = parse(tied(K), TENSORS)
    checkpoint: Any = FakeCheckpoint(TENSORS)
    assert not QuantizeWeights(Quantizer(checkpoint), Precision(checkpoint, find_target("cpu-fp32")))(model).modified
    assert op_counts(model) == {"Gather": 1, "MatMul": 1, "Transpose": 1}


class WithMinima(FakeCheckpoint):
    """Its projection is stored as GGUF's Q4_1 stores one: a scale and a minimum for 32 codes."""

    def __init__(self) -> None:
        super().__init__(TENSORS)
        random = np.random.default_rng(4)
        scales = random.uniform(0.05, 0.3, (24, K // 32)).astype(np.float32)
        self.matrix = BlockQuantized(
            bits=4,
            block=32,
            codes=random.integers(0, 16, (24, K)).astype(np.uint8),
            scales=scales,
            zero_points=np.zeros(scales.shape, np.uint8),
            offsets=(-scales * random.uniform(0, 15, scales.shape)).astype(np.float32),  # every block spans zero
        )

    def block_format(self, name: str) -> BlockFormat | None:  # type: ignore[override]
        return BlockFormat(bits=4, block=32, zero_points=True, offsets=True) if name == PROJ else None

    def blocks(self, name: str) -> BlockQuantized | None:  # type: ignore[override]
        return self.matrix if name == PROJ else None


@pytest.mark.parametrize("flat", [False, True])
def test_minima_multiply_the_means_of_blocks(flat: bool) -> None:
    shape = "N" if flat else "B,T"
    text = (
        f'agraph (float[{shape},{K}] x, float[{K},24] "{PROJ}") => (float[{shape},24] y) {{ y = MatMul(x, "{PROJ}") }}'
    )
    checkpoint = WithMinima()
    model, _ = quantize(text, "cpu-int4", checkpoint)
    counts = {"MeansMatMulNBits": 1}
    assert op_counts(model) == counts | ({"Squeeze": 1, "Unsqueeze": 1} if flat else {})
    x = X[0] if flat else X
    weights = stored(model, "l.q_proj", 4, 32)  # with the columns of the means
    np.testing.assert_array_equal(
        model.graph.initializers["l.q_proj.codes"].const_value.numpy()[:, : K // 32],  # type: ignore[union-attr]
        checkpoint.matrix.codes.reshape(24, K // 32, 16, 2)[..., 0]
        | checkpoint.matrix.codes.reshape(24, K // 32, 16, 2)[..., 1] << 4,
    )
    matrix = checkpoint.matrix
    spread = {name: np.repeat(getattr(matrix, name).astype(np.float64), 32, axis=1) for name in ("scales", "offsets")}
    exact = spread["scales"] * matrix.codes + spread["offsets"]
    means = x.reshape(*x.shape[:-1], K // 32, 32).mean(axis=-1)
    widened = np.concatenate([x, means], axis=-1)
    # What the zero points leave of a minimum is at most half a step, kept to 1/14 of the largest in its row.
    rest = 32 * matrix.scales.max(axis=1) / 2 / 14
    folding = np.abs(means).sum(axis=-1, keepdims=True) * rest
    error = np.abs(run(model, {"x": x})["y"] - x.astype(np.float64) @ exact.T)
    assert (error <= activation_error(widened, weights, 32) + folding).all()
