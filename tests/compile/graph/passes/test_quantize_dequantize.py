"""Q/DQ products equal a float64 simulation of the same roundings, and their weights are stored in the low type."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from numpy.typing import NDArray

from megrez.compile.graph.passes.fuse_projections import FuseProjections
from megrez.compile.graph.passes.quantize_dequantize import QuantizeDequantize
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.targets import Target, find_target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import UsageError
from tests.graphs import FakeCheckpoint, op_counts, parse
from tests.portable import array_of, decoded, rounded, run_basic

RANDOM = np.random.default_rng(0)
Q, K, V = (f"l.{part}_proj.weight" for part in "qkv")
BIAS, HEAD, EMBED = "l.q_proj.bias", "lm_head.weight", "model.embed_tokens.weight"
INPUTS = 200  # no multiple of 32 or 128: the last block is short
SHAPES = {Q: (24, INPUTS), K: (8, INPUTS), V: (8, INPUTS), BIAS: (24,), HEAD: (40, INPUTS), EMBED: (40, INPUTS)}
# Heavy tails, and rows of very different sizes.
TENSORS: dict[str, NDArray[np.float32]] = {
    name: (RANDOM.standard_t(4, shape) * np.exp(RANDOM.normal(size=(shape[0], *[1] * (len(shape) - 1))))).astype("f4")
    for name, shape in SHAPES.items()
}
X = RANDOM.standard_t(4, (2, 3, INPUTS)).astype(np.float32)
SCALE = {"int8": 0.03, "fp8": 0.008}  # the largest of X saturate
DTYPES = {"trt-int8": np.dtype(np.int8), "trt-fp8": np.dtype(ml_dtypes.float8_e4m3fn), "trt-int4": ml_dtypes.int4}
FORMS = [("trt-int8", None), ("trt-fp8", None), ("trt-int4", 32), ("trt-int4", 128), ("trt-int4", 256)]
PROJECT = f'agraph (float[B,T,{INPUTS}] x, float[{INPUTS},24] "{Q}", float[24] "{BIAS}") => (float[B,T,24] y)'
TWO = (
    f'agraph (float[B,T,{INPUTS}] x, float[{INPUTS},24] "{Q}", float[{INPUTS},8] "{K}") '
    f'=> (float[B,T,24] q, float[B,T,8] k) {{ q = MatMul(x, "{Q}") k = MatMul(x, "{K}") }}'
)


def target_of(name: str, block: int | None = None) -> Target:
    target = find_target(name)
    return target if block is None else target.with_block(block)


def lowered(text: str, target: Target, scales: Any = None, *, fuse: bool = False) -> tuple[ir.Model, bool]:
    checkpoint: Any = FakeCheckpoint(TENSORS)
    model = parse(text, TENSORS)
    precision = Precision(checkpoint, target)
    if fuse:
        FuseProjections(checkpoint, precision.fusion_key)(model)
    known = (lambda name: SCALE.get(target.input_type or "")) if scales is None else scales
    quantizer = Quantizer(checkpoint, dequantize_linear=True)
    modified = QuantizeDequantize(quantizer, precision, known, input_type=target.input_type)(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert checkpoint.reads == []
    return model, modified


def assert_close(found: NDArray[Any], expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def simulated(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, K] rounded per row: the nearest of 255 steps, or of E4M3's numbers, up to the row's largest."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if name == "trt-int8":
        scale = largest / np.float32(127)
        return np.rint(matrix / scale) * scale.astype(np.float64)
    scale = largest / np.float32(448)
    return (matrix / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize(("name", "block"), FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_projection(name: str, block: int | None, bias: bool) -> None:
    target = target_of(name, block)
    nodes = f'm = MatMul(x, "{Q}") y = Add(m, "{BIAS}")' if bias else f'y = MatMul(x, "{Q}")'
    model, _ = lowered(f"{PROJECT} {{ {nodes} }}", target)
    rounding = {"QuantizeLinear": 1} if target.input_type else {}
    counts = {"DequantizeLinear": 1 + len(rounding), "MatMul": 1, **rounding, **({"Add": 1} if bias else {})}
    assert op_counts(model) == dict(sorted(counts.items())) and Q not in model.graph.initializers
    assert array_of(model, "l.q_proj.codes").dtype == DTYPES[name]
    assert array_of(model, "l.q_proj.codes").shape == (INPUTS, 24)
    scales = array_of(model, "l.q_proj.scales")
    assert scales.shape == ((24,) if block is None else (-(-INPUTS // block), 24)) and (scales > 0).all()
    weights = decoded(model, "l.q_proj", block)
    if block is None:
        np.testing.assert_allclose(weights.T, simulated(name, TENSORS[Q]), rtol=1e-6, atol=0)
    else:
        spread = np.repeat(scales, block, axis=0)[:INPUTS]
        assert (np.abs(weights - TENSORS[Q].T) <= 1.5 * spread).all()
    expected = rounded(X, SCALE.get(target.input_type or "", 0), target.input_type) @ weights
    assert_close(run_basic(model, {"x": X})[0], expected + (TENSORS[BIAS] if bias else 0))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", ["trt-int8", "trt-fp8"])
def test_projections_of_one_input_share_its_rounding(name: str, fuse: bool) -> None:
    text = (
        f'agraph (float[B,T,{INPUTS}] x, float[{INPUTS},24] "{Q}", float[{INPUTS},8] "{K}", float[{INPUTS},8] "{V}") '
        f"=> (float[B,T,24] q, float[B,T,8] k, float[B,T,8] v) "
        f'{{ q = MatMul(x, "{Q}") k = MatMul(x, "{K}") v = MatMul(x, "{V}") }}'
    )
    target = target_of(name)
    model, _ = lowered(text, target, fuse=fuse)
    matrices = 1 if fuse else 3
    split = {"Split": 1} if fuse else {}
    expected = {"DequantizeLinear": 1 + matrices, "MatMul": matrices, "QuantizeLinear": 1, **split}
    assert op_counts(model) == expected
    x = rounded(X, SCALE[str(target.input_type)], target.input_type)
    for found, part in zip(run_basic(model, {"x": X}), (Q, K, V), strict=True):
        assert_close(found, x @ simulated(name, TENSORS[part]).T)


def test_different_scales_are_not_shared_and_a_fused_matrix_takes_the_widest() -> None:
    scales = {Q: 0.01, K: 0.5}
    apart, _ = lowered(TWO, target_of("trt-int8"), scales.get)
    assert op_counts(apart)["QuantizeLinear"] == 2
    for found, name in zip(run_basic(apart, {"x": X}), (Q, K), strict=True):
        assert_close(found, rounded(X, scales[name], "int8") @ simulated("trt-int8", TENSORS[name]).T)
    fused, _ = lowered(TWO, target_of("trt-int8"), scales.get, fuse=True)
    (step,) = (name for name in fused.graph.initializers if name.endswith("input_scale"))
    assert array_of(fused, step) == np.float32(0.5)


@pytest.mark.parametrize("name", ["trt-int8", "trt-fp8"])
@pytest.mark.parametrize("missing", [(Q, K), (K,)])
def test_a_projection_without_a_scale_asks_for_calibration(name: str, missing: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"and {missing[0]} has no input scale: calibrate on a text"):
        lowered(TWO, target_of(name), lambda tensor: None if tensor in missing else 0.1, fuse=True)


@pytest.mark.parametrize("known", [False, True])
def test_a_heads_input_is_rounded_only_by_a_scale_that_is_known(known: bool) -> None:
    text = f'agraph (float[N,{INPUTS}] x, float[{INPUTS},40] "{HEAD}") => (float[N,40] y) {{ y = MatMul(x, "{HEAD}") }}'
    target = replace(target_of("trt-fp8"), head=WeightFormat(bits=8, block=None, symmetric=True, floating=True))
    model, _ = lowered(text, target, lambda name: 0.008 if known else None)
    x = rounded(X[0], 0.008, "fp8" if known else None)
    assert_close(run_basic(model, {"x": X[0]})[0], x @ simulated("trt-fp8", TENSORS[HEAD]).T)


def test_a_tied_head_gets_codes_of_its_own_and_tokens_are_looked_up_in_float32() -> None:
    text = (
        f'agraph (int64[B,T] ids, float[40,{INPUTS}] "{EMBED}") => (float[B,T,{INPUTS}] e, float[B,T,40] y) '
        f'{{ e = Gather("{EMBED}", ids) h = Transpose<perm=[1, 0]>("{EMBED}") y = MatMul(e, h) }}'
    )
    target = replace(target_of("trt-int8"), head=find_target("trt-int8").weights)
    model, _ = lowered(text, target, lambda name: None)
    assert op_counts(model) == {"DequantizeLinear": 1, "Gather": 1, "MatMul": 1}
    ids = np.array([[0, 39, 7], [7, 21, 1]])
    e, y = run_basic(model, {"ids": ids})
    np.testing.assert_array_equal(e, TENSORS[EMBED][ids])
    assert_close(y, e.astype(np.float64) @ simulated("trt-int8", TENSORS[EMBED]).T)


def test_float_matrices_stay() -> None:
    text = f'agraph (float[N,{INPUTS}] x, float[{INPUTS},40] "{HEAD}") => (float[N,40] y) {{ y = MatMul(x, "{HEAD}") }}'
    model, modified = lowered(text, target_of("trt-int8"))
    assert not modified and op_counts(model) == {"MatMul": 1}
