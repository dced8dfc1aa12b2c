"""Our kernels against the operator's arithmetic in float64: int8 inputs with a scale per block, the rest exact."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from megrez.engines.ort import custom_ops
from megrez.runtime.huge_pages import wanted_environment
from tests.engines.ort.own_kernels import LIBRARY, needs_kernels
from tests.quantized import decode

Float32 = NDArray[np.float32]

pytestmark = needs_kernels

MEANS = "megrez", "MeansMatMulNBits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What MatMulNBits reads of [rows, columns]."""

    bits: int
    block: int
    columns: int
    codes: NDArray[np.uint8]
    scales: Float32
    zero_points: NDArray[np.uint8] | None
    bias: Float32 | None

    def exact(self, x: Float32) -> NDArray[np.float64]:
        weights = decode(self.codes, self.scales, self.zero_points, bits=self.bits, block=self.block)
        product = rounded(x, self.block) @ weights[:, : self.columns].T
        return product if self.bias is None else product + self.bias


def rounded(x: Float32, block: int) -> NDArray[np.float64]:
    """By the operator's accuracy_level 4: int8, the largest magnitude of a block is 127."""
    found = np.zeros(x.shape)
    for start in range(0, x.shape[-1], block):
        part = x[..., start : start + block]
        largest = np.abs(part).max(axis=-1, keepdims=True)
        factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        found[..., start : start + block] = np.rint(part * factor) * (largest.astype(np.float64) / 127)
    return found


def matrix(rows: int, columns: int, bits: int, block: int, *, points: bool = True, bias: bool = False) -> Matrix:
    rng = np.random.default_rng(rows * columns + bits + block)
    blocks = -(-columns // block)
    return Matrix(
        bits=bits,
        block=block,
        columns=columns,
        codes=rng.integers(256, size=(rows, blocks, block * bits // 8), dtype=np.uint8),
        scales=rng.standard_normal((rows, blocks), np.float32),
        zero_points=rng.integers(256, size=(rows, -(-blocks * bits // 8)), dtype=np.uint8) if points else None,
        bias=rng.standard_normal(rows, np.float32) if bias else None,
    )


def session(
    weights: Matrix,
    *,
    ours: bool = True,
    order: NDArray[np.int32] | None = None,
    fed: str = "",
    operator: tuple[str, str] = ("com.microsoft", "MatMulNBits"),
    **changed: int | None,
) -> Any:
    """order: g_idx. fed: constants, by letter, that the graph gets as inputs instead. None leaves an attribute out."""
    arrays = {"b": weights.codes, "s": weights.scales, "z": weights.zero_points, "g": order, "c": weights.bias}
    inputs = ["x", *("" if array is None else name for name, array in arrays.items())]
    while not inputs[-1]:
        inputs.pop()
    wanted = {"N": len(weights.codes), "K": weights.columns, "bits": weights.bits, "block_size": weights.block}
    wanted["accuracy_level"] = 4
    attributes = {name: value for name, value in (wanted | changed).items() if value is not None}
    node = helper.make_node(operator[1], inputs, ["y"], domain=operator[0], **attributes)
    given = {name: numpy_helper.from_array(array, name) for name, array in arrays.items() if array is not None}
    x = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    x += [helper.make_tensor_value_info(name, given[name].data_type, None) for name in fed]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [tensor for name, tensor in given.items() if name not in fed]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("megrez", 1)]
    model = helper.make_model(helper.make_graph([node], "g", x, [y], initializers), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if ours:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check(weights: Matrix, x: Float32) -> None:
    (found,) = session(weights).run(None, {"x": x})
    compare(found, weights, x)


def compare(found: Float32, weights: Matrix, x: Float32) -> None:
    exact = weights.exact(x)
    assert found.dtype == np.float32 and found.shape == exact.shape
    magnitudes = np.abs(
        decode(weights.codes, weights.scales, weights.zero_points, bits=weights.bits, block=weights.block)
    )
    # Float32 sums of as many terms as there are blocks.
    allowed = 1e-6 * (np.abs(rounded(x, weights.block)) @ magnitudes[:, : weights.columns].T) + 1e-6
    assert (np.abs(found - exact) <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("points", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("columns", [512, 2560, 31 * 16, 1100], ids="columns={}".format)
def test_products_are_exact_but_for_float32_sums(bits: int, block: int, points: bool, bias: bool, columns: int) -> None:
    weights = matrix(83, columns, bits, block, points=points, bias=bias)
    for count in (1, 2, 3, 4, 9, 79):
        check(weights, np.random.default_rng(count).standard_normal((count, columns), np.float32))


@pytest.mark.parametrize("columns", [512, 576], ids="columns={}".format)
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 16)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_last_columns_multiply_the_means_of_blocks(bits: int, block: int, columns: int, count: int) -> None:
    folded = matrix(70, columns + columns // block, bits, block, bias=True)
    x = np.random.default_rng(1).integers(-64, 65, (count, columns)).astype(np.float32)  # means are exact
    means = x.reshape(count, columns // block, block).mean(axis=2)
    (found,) = session(folded, operator=MEANS).run(None, {"x": x})
    compare(found, folded, np.concatenate([x, means], axis=1))
    with pytest.raises(Exception, match="A has not K columns"):
        session(folded, operator=MEANS).run(None, {"x": x[:, :-1]})


def test_means_need_a_column_for_every_block() -> None:
    with pytest.raises(Exception, match="K is not a multiple of block_size"):
        session(matrix(5, 64, 4, 32), operator=MEANS)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_codes_and_inputs_do_not_overflow(bits: int) -> None:
    weights = matrix(20, 1024, bits, 256, points=False)
    weights.codes.fill(255)
    for x in (np.ones((5, 1024), np.float32), -np.ones((5, 1024), np.float32)):
        check(weights, x)


def test_blocks_of_zeros_count_for_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((2, 512), np.float32)
    x[:, 64:192] = 0
    check(matrix(40, 512, 4, 64), x)


def test_inputs_of_any_rank_and_of_no_rows_keep_their_shape() -> None:
    weights = matrix(70, 256, 4, 32)
    opened = session(weights)
    x = np.random.default_rng(0).standard_normal((2, 3, 256), np.float32)
    np.testing.assert_allclose(opened.run(None, {"x": x})[0], weights.exact(x), rtol=0, atol=1e-3)
    assert opened.run(None, {"x": np.zeros((2, 0, 256), np.float32)})[0].shape == (2, 0, 70)


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(Exception, match="A has not K columns"):
        session(matrix(70, 256, 4, 32)).run(None, {"x": np.zeros((1, 128), np.float32)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_size": 512}, "blocks of 16 to 256 are taken; MEGREZ_KERNELS=0 has ONNX Runtime's own"),
        ({"bits": 2}, "4 or 8 bits"),
        ({"accuracy_level": None}, "accuracy_level 4 is taken; MEGREZ_KERNELS=0"),
        ({"accuracy_level": 1}, "accuracy_level 4 is taken"),
        ({"order": np.zeros(512, np.int32)}, "g_idx is not taken"),
        ({"fed": "b"}, "constants of the graph"),
        ({"fed": "z"}, "constants of the graph"),
        ({"N": 1 << 40}, "N and K are not between"),
        ({"K": 0}, "N and K are not between"),
        ({"N": 17}, "B has 4096 elements, by N, K, bits and block_size it would have 4352"),
        ({"K": 256}, "B has 4096 elements, by .* it would have 2048"),
    ],
    ids=str,
)
def test_what_is_not_taken_is_refused_when_the_graph_is_opened(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(matrix(16, 512, 4, 256), **changed)


@pytest.mark.parametrize(
    ("name", "of_shape", "message"),
    [
        ("codes", (16, 0, 128), "B has 0 elements, by N, K, bits and block_size it would have 4096"),
        ("scales", (16, 1), "scales has 16 elements, .* 32"),
        ("zero_points", (15, 1), "zero_points has 15 elements, .* 16"),
        ("bias", (1,), "bias has 1 elements, .* 16"),
    ],
)
def test_constants_of_other_sizes_are_refused(name: str, of_shape: tuple[int, ...], message: str) -> None:
    weights = matrix(16, 512, 4, 256, bias=True)
    other = replace(weights, **{name: np.zeros(of_shape, getattr(weights, name).dtype)})
    with pytest.raises(Exception, match=message):
        session(other)


def test_bits_are_4_where_they_are_not_said() -> None:
    weights = matrix(16, 512, 4, 256)
    x = np.ones((1, 512), np.float32)
    np.testing.assert_array_equal(*(session(weights, bits=bits).run(None, {"x": x})[0] for bits in (None, 4)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 19])
def test_what_is_not_finite_stays_so(bits: int, number: float, count: int) -> None:
    weights = matrix(40, 512, bits, 64)
    x = np.random.default_rng(0).standard_normal((count, 512), np.float32)
    x[1, 300] = number
    (found,) = session(weights).run(None, {"x": x})
    others = np.arange(count) != 1
    assert not np.isfinite(found[1]).any()
    compare(found[others], weights, x[others])


def test_very_large_and_very_small_numbers() -> None:
    weights = matrix(40, 512, 4, 64, points=False)
    weights.scales.fill(1)
    x = np.random.default_rng(0).standard_normal((2, 512), np.float32)
    scales = np.array([[1e35], [1e-39]], np.float32)
    (found,) = session(weights).run(None, {"x": x * scales})
    assert (np.abs(found[0] / 1e35 - weights.exact(x)[0]) <= 1e-3).all()
    assert (np.abs(found[1]) <= 1e-35).all()


def test_onnxruntime_has_the_same_arithmetic() -> None:
    weights = matrix(64, 2560, 4, 256)
    x = np.random.default_rng(0).standard_normal((7, 2560), np.float32)
    ours, theirs = (session(weights, ours=ours).run(None, {"x": x})[0] for ours in (True, False))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("points", [True, False])
def test_an_input_s_result_does_not_depend_on_the_others(bits: int, block: int, points: bool) -> None:
    """Nor on its place among them: 2,064 columns are several tiles and a part of one, 37 rows likewise."""
    columns = 2064
    opened = session(matrix(37, columns, bits, block, points=points, bias=True))
    x = np.random.default_rng(0).standard_normal((80, columns), np.float32)
    alone = np.concatenate([opened.run(None, {"x": row[None]})[0] for row in x])
    for count in (*range(2, 18), 31, 33, 40, 65, 79):
        for first in {0, len(x) - count}:
            (found,) = opened.run(None, {"x": x[first : first + count]})
            np.testing.assert_array_equal(found, alone[first : first + count])


def print_products() -> None:
    """A digest of many products' bits: MEGREZ_KERNELS decides once in a process."""
    digest = hashlib.sha256()
    for bits, block, columns in itertools.product((4, 8), (16, 32, 64, 128, 256), (576, 1100)):
        opened = session(matrix(83, columns, bits, block))
        for count in (1, 2, 3, 4, 5, 9, 16, 79, 145):
            x = np.random.default_rng(count).standard_normal((count, columns), np.float32)
            digest.update(opened.run(None, {"x": x})[0].tobytes())
    print(digest.hexdigest())


@pytest.mark.skipif(LIBRARY is None or custom_ops.instructions(LIBRARY) == "AVX2", reason="the processor has no VNNI")
@pytest.mark.parametrize("setting", ["vnni", "avx512", "1"])
def test_all_instruction_sets_have_the_same_results(setting: str) -> None:
    code = "from tests.engines.ort.test_matmul_nbits import print_products; print_products()"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, custom_ops.SETTING: used},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for used in ("avx2", setting)
    ]
    assert found[0] == found[1] and len(found[0].strip()) == 64


def print_products_and_chunks() -> None:
    """And how many of this process's mappings have 64 MiB and ask for huge pages, while a matrix of 4 MB is open."""
    print_products()
    _opened = session(matrix(2048, 4096, 4, 64))
    mappings = re.findall(r"(?m)^Size: +(\d+) kB|^VmFlags:(.*)", Path("/proc/self/smaps").read_text(encoding="utf-8"))
    sizes, flags = ([one[n] for one in mappings if one[n]] for n in (0, 1))
    print(sum(int(size) == 64 << 10 and "hg" in flag.split() for size, flag in zip(sizes, flags, strict=True)))


@pytest.mark.skipif(wanted_environment({}, "glibc 2.36") is None, reason="no huge pages on request here")
def test_weights_in_huge_pages_have_the_same_results() -> None:
    code = "from tests.engines.ort.test_matmul_nbits import print_products_and_chunks as p; p()"
    found = []
    for setting in "0", "1":
        environment = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={setting}"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    (without, none), (copied, some) = found
    assert without == copied and (none, some) == ("0", "1")
