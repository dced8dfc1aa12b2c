"""Our attention over float16 and int8 KV caches, against float64 over what the caches hold.

Each runs with AVX2 and in portable C, which is chosen when the process registers the library: in one of its own.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.engines.ort.own_kernels import LIBRARY, needs_library
from tests.engines.ort.test_group_query_attention import (
    INPUTS,
    SHAPES,
    TYPES,
    Float64,
    Shape,
    feeds,
    in_chunks,
    turned,
)

FORMATS = {"float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
SCALES = ["k_scale", "v_scale"]
Feeds = dict[str, NDArray[Any]]

pytestmark = needs_library


def cached_feeds(shape: Shape, form: str, capacity: int = 2112) -> Feeds:
    """Caches of random tokens; where no token is, NaN or the largest code and a scale of NaN."""
    given = feeds(shape, capacity)
    for name, scale in zip(("past_key", "past_value"), SCALES, strict=True):
        cache = given[name]
        if form == "float16":
            given[name] = cache.astype(np.float16)
        else:
            given[scale] = np.abs(cache).max(axis=-1, keepdims=True) / np.float32(127)
            given[name] = np.rint(cache / given[scale]).astype(np.int8)
        for row, (length, new) in enumerate(zip(shape.lengths, shape.new, strict=True)):
            unwritten = slice(length - new, None)
            given[name][row, :, unwritten] = np.nan if form == "float16" else 127
            if form == "int8":
                given[scale][row, :, unwritten] = np.nan
    return given


def session(shape: Shape, form: str, *, threads: int = 2) -> Any:
    scales = SCALES if form == "int8" else ["", ""]
    names = [*INPUTS, "", "", "", *scales, "", "", "query_seqlens"]
    outputs = ["output", "present_key", "present_value", *(f"present_{name}" for name in scales if name)]
    attributes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "do_rotary": 1}
    attributes |= {"local_window_size": shape.window}
    operator = {"float16": "GroupQueryAttentionFloat16", "int8": "GroupQueryAttentionInt8"}[form]
    node = helper.make_node(operator, names, outputs, domain="megrez.cache", **attributes)
    caches = dict.fromkeys(("past_key", "past_value", "present_key", "present_value"), FORMATS[form])
    told = [helper.make_tensor_value_info(n, (TYPES | caches).get(n, TensorProto.FLOAT), None) for n in names if n]
    given = [helper.make_tensor_value_info(n, caches.get(n, TensorProto.FLOAT), None) for n in outputs]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("megrez.cache", 1)]
    model = helper.make_model(helper.make_graph([node], "g", told, given), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_in_place(opened: Any, given: Feeds, heads: int) -> NDArray[np.float32]:
    """What the runtime does: the caches in `given` are both read and written."""
    rows, tokens = given["query"].shape[:2]
    output = np.full((rows, tokens, heads * given["past_key"].shape[-1]), np.nan, np.float32)
    io = opened.io_binding()
    kept = {"past_key": "present_key", "past_value": "present_value", **{name: f"present_{name}" for name in SCALES}}
    written = {"output": output} | {kept[name]: array for name, array in given.items() if name in kept}
    for bind, arrays in ((io.bind_input, given), (io.bind_output, written)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    opened.run_with_iobinding(io)
    return output


def dequantized(given: Feeds, name: str) -> Float64:
    """A cache [B, heads, capacity, width] in float64."""
    cache = given[name].astype(np.float64)
    return cache * given[SCALES[name == "past_value"]].astype(np.float64) if given[name].dtype == np.int8 else cache


def spread(heads: Float64, form: str) -> Float64:
    """Of an int8 cache: [..., width] times a Hadamard matrix, per block of the largest power of two in the width."""
    width = heads.shape[-1]
    matrix = np.ones((1, 1))
    while form == "int8" and width % (2 * len(matrix)) == 0:
        matrix = np.kron(matrix, [[1, 1], [1, -1]]) / np.sqrt(2)
    return np.asarray(
        (heads.reshape(*heads.shape[:-1], width // len(matrix), len(matrix)) @ matrix).reshape(heads.shape)
    )


def attended(shape: Shape, given: Feeds, form: str) -> Float64:
    """The output over caches that hold the new tokens too; 0 for tokens that are not valid."""
    keys, values = dequantized(given, "past_key"), dequantized(given, "past_value")
    query, group = given["query"].astype(np.float64), shape.heads // shape.kv_heads
    output = np.zeros((len(shape.lengths), shape.tokens, shape.heads, shape.width))
    for row, (length, fresh) in enumerate(zip(shape.lengths, shape.new, strict=True)):
        positions = np.arange(length - fresh, length)
        each = query[row].reshape(shape.tokens, -1, shape.width)[:fresh]
        queries = spread(turned(each, *(given[name][positions].astype(np.float64) for name in ("cos", "sin"))), form)
        for n, position in enumerate(positions):
            first = max(0, position + 1 - shape.window) if shape.window > 0 else 0
            for head in range(shape.heads):
                seen = (row, head // group, slice(first, position + 1))
                scores = keys[seen] @ queries[n, head] / np.sqrt(shape.width)
                weights = np.exp(scores - scores.max())
                output[row, n, head] = weights / weights.sum() @ values[seen]
    return output.reshape(len(shape.lengths), shape.tokens, -1)


def new_tokens(shape: Shape, given: Feeds, row: int) -> tuple[NDArray[np.int64], Float64, Float64]:
    """The positions of a row's valid new tokens, and the keys and values [kv_heads, N, width] to be stored there."""
    fresh, length = shape.new[row], shape.lengths[row]
    positions = np.arange(length - fresh, length)
    each = [given[name][row].astype(np.float64).reshape(shape.tokens, -1, shape.width)[:fresh] for name in INPUTS[1:3]]
    keys = turned(each[0], *(given[name][positions].astype(np.float64) for name in ("cos", "sin")))
    return positions, keys.swapaxes(0, 1), each[1].swapaxes(0, 1)


def check_stored(shape: Shape, before: Feeds, given: Feeds, form: str) -> None:
    """New tokens are rounded to nearest; all others are as they were, bit for bit."""
    for row in range(len(shape.lengths)):
        positions, keys, values = new_tokens(shape, before, row)
        keys = spread(keys, form)
        for name, scale, exact in (("past_key", SCALES[0], keys), ("past_value", SCALES[1], values)):
            others = np.setdiff1d(np.arange(given[name].shape[2]), positions)
            for cache in [name, *[scale] * (form == "int8")]:
                assert given[cache][row][:, others].tobytes() == before[cache][row][:, others].tobytes()
            stored = dequantized(given, name)[row][:, positions]
            if form == "float16":
                step = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
            else:
                largest = np.abs(exact).max(axis=-1, keepdims=True)
                np.testing.assert_allclose(given[scale][row][:, positions], largest / 127, rtol=1e-5)
                assert (np.abs(given[name][row][:, positions].astype(np.int64)) <= 127).all()
                step = largest / 127
            assert (np.abs(stored - exact) <= 0.5001 * step + 1e-6).all()


def check_all_shapes() -> None:
    for form in FORMATS:
        for shape in SHAPES:
            given = cached_feeds(shape, form)
            before = {name: array.copy() for name, array in given.items()}
            found = run_in_place(session(shape, form), given, shape.heads)
            # With AVX2, queries and weights of int8 products have 16 bits.
            off = 5e-6 if form == "float16" else 2e-4
            np.testing.assert_allclose(found, attended(shape, given, form), rtol=0, atol=off, err_msg=f"{form} {shape}")
            check_stored(shape, before, given, form)


SINGLE = (1,) * 300
CHUNKS = [(128, 128, 44), (3, 40, 1, 1, 17, 150, 88)]


def check_that_a_sequence_alone_decides() -> None:
    check_divisions(CHUNKS)


def check_that_single_steps_are_a_prefill() -> None:
    check_divisions([SINGLE])


def check_divisions(divisions: Sequence[tuple[int, ...]]) -> None:
    """Bit for bit: whatever else is in the step, and however the sequence is divided into steps."""
    for form in FORMATS:
        for window in (-1, 150):
            shape = Shape(heads=6, lengths=(300,), tokens=300, window=window)
            whole = cached_feeds(shape, form, capacity=1024)
            expected = run_in_place(session(shape, form), whole, shape.heads)[0]
            opened = session(shape, form)
            for chunks in divisions:
                for beside in (None, 900):
                    found = divided(opened, shape, form, chunks, beside)
                    np.testing.assert_array_equal(found, expected, err_msg=f"{form} {window} {chunks} {beside}")


def divided(opened: Any, shape: Shape, form: str, chunks: tuple[int, ...], beside: int | None) -> NDArray[np.float32]:
    given = cached_feeds(shape, form, capacity=1024)
    caches = {name: given[name] for name in ("past_key", "past_value", *SCALES) if name in given}
    if beside:
        other = cached_feeds(Shape(heads=6, lengths=(beside,)), form, capacity=1024)
        caches = {name: np.concatenate([array, other[name]]) for name, array in caches.items()}
    return in_chunks(lambda step: run_in_place(opened, step, shape.heads)[0], given, caches, chunks, beside)


def check_extremes() -> None:
    """Zeros stay zeros, halves are rounded to even at the ends of their range, what is not finite is not hidden."""
    shape = Shape(heads=1, kv_heads=1, width=8, lengths=(1,))
    for form in FORMATS:
        given = cached_feeds(shape, form, capacity=8)
        given["value"][:] = 0
        np.testing.assert_array_equal(run_in_place(session(shape, form), given, 1), np.zeros((1, 1, 8)))
        for bad in (np.nan, np.inf):
            given["value"][..., 3] = bad
            assert not np.isfinite(run_in_place(session(shape, form), given, 1)[..., 3]).any()
    given = cached_feeds(shape, "float16", capacity=8)
    given["value"][0, 0] = [65519.0, 65520.0, 2**-24, 2**-25, 1.5 * 2**-24, -(2**-14), 2049.0, 1 + 3 * 2**-11]
    run_in_place(session(shape, "float16"), given, 1)
    with np.errstate(over="ignore"):
        expected = given["value"][0, 0].astype(np.float16)
    np.testing.assert_array_equal(given["past_value"][0, 0, 0], expected)


CHECKS = ("check_all_shapes", "check_that_a_sequence_alone_decides", "check_extremes")


@pytest.mark.parametrize(
    ("check", "setting"),
    [
        *itertools.product(CHECKS, ["1", "portable"]),
        ("check_that_single_steps_are_a_prefill", "1"),
        pytest.param("check_that_single_steps_are_a_prefill", "portable", marks=pytest.mark.slow),  # 2,400 steps
    ],
)
def test_caches_of_other_formats(check: str, setting: str) -> None:
    code = f"import tests.engines.ort.test_cache_formats as t; t.{check}()"
    environment = {**os.environ, "MEGREZ_KERNELS": setting}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_cache_that_is_not_shared_is_copied() -> None:
    shape = Shape(lengths=(40, 7), tokens=2)
    for form in FORMATS:
        given, shared = (cached_feeds(shape, form, capacity=64) for _ in range(2))
        before = {name: array.copy() for name, array in given.items()}
        found, *caches = session(shape, form).run(None, given)
        np.testing.assert_array_equal(found, run_in_place(session(shape, form), shared, shape.heads))
        for cache, name in zip(caches, ("past_key", "past_value", *SCALES), strict=False):
            np.testing.assert_array_equal(cache, shared[name])
        assert all(given[name].tobytes() == before[name].tobytes() for name in given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k_scale": np.zeros((1, 2, 2112), np.float32)}, "k_scale and v_scale are not"),
        ({"v_scale": np.zeros((1, 2, 64, 1), np.float32)}, "k_scale and v_scale are not"),
        ({"past_value": np.zeros((1, 2, 64, 64), np.int8)}, "differ in shape"),
    ],
)
def test_caches_that_do_not_fit_are_refused(changed: Feeds, message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(Shape(), "int8").run(None, cached_feeds(Shape(), "int8") | changed)
