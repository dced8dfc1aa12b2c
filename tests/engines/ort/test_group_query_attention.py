"""Our GroupQueryAttention against attention in float64, with the cache written in place as the runtime binds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.engines.ort.own_kernels import LIBRARY, needs_kernels

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
INPUTS = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "longest", "cos", "sin"]
NOT_TAKEN = ["position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight"]
TYPES = dict.fromkeys(("seqlens_k", "longest", "query_seqlens"), TensorProto.INT32) | {
    "position_ids": TensorProto.INT64
}

pytestmark = needs_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """lengths: of each row after the step, of which `fresh` are new, by default all `tokens`."""

    heads: int = 4
    kv_heads: int = 2
    width: int = 64
    tokens: int = 1
    lengths: tuple[int, ...] = (200,)
    fresh: tuple[int, ...] | None = None
    window: int = -1
    rotated: int | None = None

    @property
    def new(self) -> tuple[int, ...]:
        return self.fresh or (self.tokens,) * len(self.lengths)


SHAPES = [
    Shape(),
    Shape(lengths=(1,)),
    Shape(heads=9, kv_heads=3, lengths=(801,)),
    Shape(heads=14, kv_heads=2, width=128, lengths=(600, 1, 130)),
    Shape(heads=14, kv_heads=2, width=128, lengths=(600, 1, 130), window=100),
    Shape(heads=1, kv_heads=1, width=264, lengths=(2100,)),
    Shape(tokens=3, width=16, lengths=(20, 11), window=5),
    Shape(tokens=3, width=16, lengths=(20, 11), fresh=(3, 2), window=5),
    Shape(heads=8, kv_heads=8, width=80, lengths=(290, 5), fresh=(1, 0), rotated=32),
    Shape(heads=8, kv_heads=8, width=8, tokens=4, lengths=(290, 4), rotated=6),
    Shape(heads=71, kv_heads=1, width=8, tokens=5, lengths=(64,)),
    Shape(heads=9, kv_heads=3, tokens=130, lengths=(130,)),
    Shape(heads=9, kv_heads=3, tokens=130, lengths=(330,)),
    Shape(heads=6, kv_heads=2, width=24, tokens=70, lengths=(330, 70), fresh=(70, 69), window=40, rotated=16),
]


def feeds(shape: Shape, capacity: int = 2112) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(shape.width + sum(shape.lengths))
    rows, positions = len(shape.lengths), rng.standard_normal((capacity, (shape.rotated or shape.width) // 2))
    shapes = {"query": shape.heads, "key": shape.kv_heads, "value": shape.kv_heads}
    new = {name: (rows, shape.tokens, heads * shape.width) for name, heads in shapes.items()}
    cache = {name: (rows, shape.kv_heads, capacity, shape.width) for name in ("past_key", "past_value")}
    return {
        **{name: rng.standard_normal(one, np.float32) for name, one in (new | cache).items()},
        "seqlens_k": np.array(shape.lengths, np.int32) - 1,
        "longest": np.array(max(shape.lengths), np.int32),
        "cos": np.cos(positions).astype(np.float32),
        "sin": np.sin(positions).astype(np.float32),
        "query_seqlens": np.array(shape.new, np.int32),
    }


def session(shape: Shape, *, ours: bool = True, packed: bool = False, **changed: Any) -> Any:
    """extra: an input more, which the operator has and our kernel does not take. counted: with query_seqlens."""
    extra, counted = changed.pop("extra", ""), changed.pop("counted", True)
    names = [*INPUTS, *(name if name == extra else "" for name in NOT_TAKEN), *["query_seqlens"] * counted]
    if packed:
        names[1:3] = "", ""
    attributes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "do_rotary": 1}
    attributes |= {"local_window_size": shape.window} | changed
    outputs = ["output", "present_key", "present_value"]
    node = helper.make_node("GroupQueryAttention", names, outputs, domain="com.microsoft", **attributes)
    told = [helper.make_tensor_value_info(n, TYPES.get(n, TensorProto.FLOAT), None) for n in names if n]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", told, given), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if ours:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_in_place(opened: Any, given: dict[str, NDArray[Any]], heads: int) -> Float32:
    """What the runtime does: the cache in `given` is both read and written."""
    rows, tokens = given["query"].shape[:2]
    output = np.full((rows, tokens, heads * given["past_key"].shape[-1]), np.nan, np.float32)
    io = opened.io_binding()
    for name, array in given.items():
        io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    written = {"output": output, "present_key": given["past_key"], "present_value": given["past_value"]}
    for name, array in written.items():
        io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    opened.run_with_iobinding(io)
    return output


def turned(x: Float64, cos: Float64, sin: Float64) -> Float64:
    """[T, heads, width] by [T, rotated / 2]."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def exact(shape: Shape, given: dict[str, NDArray[Any]]) -> tuple[Float64, Float64, Float64]:
    """The output and both caches, in float64; nothing is written or seen of tokens that are not valid."""
    wide = {name: array.astype(np.float64) for name, array in given.items() if array.dtype == np.float32}
    keys, values = wide["past_key"], wide["past_value"]
    rows, group = len(shape.lengths), shape.heads // shape.kv_heads
    output = np.zeros((rows, shape.tokens, shape.heads, shape.width))
    for row, (length, fresh) in enumerate(zip(shape.lengths, shape.new, strict=True)):
        positions = np.arange(length - fresh, length)
        cos, sin = wide["cos"][positions], wide["sin"][positions]
        each = {name: wide[name][row] for name in ("query", "key", "value")}
        new = {name: array.reshape(shape.tokens, -1, shape.width)[:fresh] for name, array in each.items()}
        keys[row, :, positions] = turned(new["key"], cos, sin)
        values[row, :, positions] = new["value"]
        queries = turned(new["query"], cos, sin)
        for n, position in enumerate(positions):
            first = max(0, position + 1 - shape.window) if shape.window > 0 else 0
            for head in range(shape.heads):
                seen = (row, head // group, slice(first, position + 1))
                scores = keys[seen] @ queries[n, head] / np.sqrt(shape.width)
                weights = np.exp(scores - scores.max())
                output[row, n, head] = weights / weights.sum() @ values[seen]
    return output.reshape(rows, shape.tokens, -1), keys, values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_and_cache_agree_with_float64(shape: Shape) -> None:
    given = feeds(shape)
    output, keys, values = exact(shape, given)
    found = run_in_place(session(shape), given, shape.heads)
    np.testing.assert_allclose(found, output, rtol=0, atol=4e-6)
    np.testing.assert_allclose(given["past_key"], keys, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(given["past_value"], values)


def in_chunks(
    run: Callable[[dict[str, NDArray[Any]]], Float32],
    given: dict[str, NDArray[Any]],
    caches: dict[str, NDArray[Any]],
    chunks: tuple[int, ...],
    beside: int | None,
) -> Float32:
    """The outputs of one sequence, divided into steps of so many tokens.

    caches: written in place, of two rows where there is another sequence in every step, of length `beside`. run: the
    output of a step's first row.
    """
    found, done = [], 0
    for count in chunks:
        new = {name: given[name][:, done : done + count] for name in INPUTS[:3]}
        lengths, fresh, done = [done + count], [count], done + count
        if beside:
            new = {name: np.concatenate([array, array[:, ::-1]]) for name, array in new.items()}
            lengths, fresh = [*lengths, beside], [*fresh, 1]
        step = {name: np.ascontiguousarray(array) for name, array in new.items()} | caches
        step |= {"seqlens_k": np.array(lengths, np.int32) - 1, "longest": np.array(max(lengths), np.int32)}
        step |= {name: given[name] for name in ("cos", "sin")} | {"query_seqlens": np.array(fresh, np.int32)}
        found.append(run(step))
    return np.concatenate(found)


@pytest.mark.parametrize("window", [-1, 150])
@pytest.mark.parametrize("chunks", [(1,) * 300, (128, 128, 44), (3, 40, 1, 1, 17, 150, 88)], ids=len)
@pytest.mark.parametrize("beside", [None, 40, 900], ids=str)
def test_an_output_depends_on_its_sequence_alone(window: int, chunks: tuple[int, ...], beside: int | None) -> None:
    """Bit for bit: whatever else is in the step, and however the sequence is divided into steps."""
    shape = Shape(heads=6, lengths=(300,), tokens=300, window=window)
    whole = feeds(shape, capacity=1024)
    expected = run_in_place(session(shape), whole, shape.heads)[0]
    given = feeds(shape, capacity=1024)
    caches = {name: given[name] for name in ("past_key", "past_value")}
    if beside:
        caches = {name: np.concatenate([array, array[:, ::-1]]).copy() for name, array in caches.items()}
    opened = session(shape)
    found = in_chunks(lambda step: run_in_place(opened, step, shape.heads)[0], given, caches, chunks, beside)
    np.testing.assert_array_equal(found, expected)


def test_a_cache_that_is_not_shared_is_copied() -> None:
    shape = Shape(lengths=(40, 7), tokens=2)
    given = feeds(shape, capacity=64)
    untouched = {name: array.copy() for name, array in given.items()}
    found = session(shape).run(None, given)
    for one, other in zip(found, exact(shape, given), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=4e-6)
    assert all((given[name] == untouched[name]).all() for name in given)


@pytest.mark.parametrize("tokens", [1, 50])
def test_query_key_and_value_may_come_in_one(tokens: int) -> None:
    shape = Shape(tokens=tokens)
    given = feeds(shape)
    output = exact(shape, given)[0]
    together = np.concatenate([given.pop(name) for name in ("query", "key", "value")], axis=-1)
    found = run_in_place(session(shape, packed=True), {**given, "query": together}, shape.heads)
    np.testing.assert_allclose(found, output, rtol=0, atol=4e-6)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    shape = Shape(lengths=(300,), tokens=2)
    given = feeds(shape)
    given["query"] *= 100
    found = run_in_place(session(shape), given | {}, shape.heads)
    np.testing.assert_allclose(found, exact(shape, feeds(shape) | {"query": given["query"]})[0], rtol=0, atol=1e-3)


def test_the_scale_may_be_given() -> None:
    shape = Shape(width=16)
    given, scaled = feeds(shape), feeds(shape)
    scaled["query"] *= 2
    output = run_in_place(session(shape, scale=0.5), given, shape.heads)
    np.testing.assert_allclose(output, exact(shape, scaled)[0], rtol=0, atol=4e-6)  # 2 / sqrt(16)


def test_what_is_no_number_stays_none() -> None:
    shape = Shape()
    given = feeds(shape)
    given["query"][0, 0, :64] = np.nan
    heads = run_in_place(session(shape), given, shape.heads).reshape(shape.heads, shape.width)
    assert np.isnan(heads[0]).all() and np.isfinite(heads[1:]).all()


def test_onnxruntime_gives_the_same() -> None:
    shape = Shape(tokens=3, lengths=(70, 30), window=20)
    ours, theirs = (run_in_place(session(shape, ours=ours), feeds(shape), shape.heads) for ours in (True, False))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seqlens_k": np.array([2112], np.int32)}, "longer than its cache"),
        ({"query_seqlens": np.array([2], np.int32)}, "more valid new tokens"),
        ({"query_seqlens": np.array([1, 1], np.int32)}, "query_seqlens is not"),
        ({"seqlens_k": np.zeros((1, 0), np.int32)}, "seqlens_k is not"),
        ({"longest": np.zeros(0, np.int32)}, "total_sequence_length is not one number"),
        ({"longest": np.array(199, np.int32)}, "longer than total_sequence_length"),
        ({"query": np.zeros((1, 1, 128), np.float32)}, "query is not as wide"),
        ({"key": np.zeros((1, 1, 64), np.float32)}, "key and value are not"),
        ({"past_value": np.zeros((1, 2, 64, 64), np.float32)}, "differ in shape"),
        ({"cos": np.zeros((2112, 33), np.float32), "sin": np.zeros((2112, 33), np.float32)}, "no more of them is"),
        ({"sin": np.zeros((2112, 31), np.float32)}, "cos_cache and sin_cache differ"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changed: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(Shape()).run(None, feeds(Shape()) | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"do_rotary": 0}, "do_rotary is 0, 1 is taken; MEGREZ_KERNELS=0 has ONNX Runtime's own"),
        ({"causal": 0}, "causal is 0, 1 is taken"),
        ({"rotary_interleaved": 1}, "rotary_interleaved is 1, 0 is taken"),
        ({"smooth_softmax": 1}, "smooth_softmax is 1, 0 is taken"),
        ({"qk_output": 1}, "qk_output is 1, 0 is taken"),
        ({"sliding_window_cache": 1}, "sliding_window_cache is 1, 0 is taken"),
        ({"softcap": 30.0}, "softcap is not taken"),
        ({"local_window_size": 0}, "local_window_size is 0"),
        ({"num_heads": 3}, "not a multiple of kv_num_heads"),
        *(({"extra": name}, f"input {number} is not taken; MEGREZ") for number, name in enumerate(NOT_TAKEN, 9)),
    ],
    ids=str,
)
def test_other_attention_is_refused_when_the_graph_is_opened(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(Shape(), **changed)


def test_without_counts_as_many_tokens_are_valid_as_a_row_is_long() -> None:
    shape = Shape(width=16, tokens=7, lengths=(7, 4), fresh=(7, 4))
    given = feeds(shape)
    output, keys, _ = exact(shape, given)
    del given["query_seqlens"]
    found = run_in_place(session(shape, counted=False), given, shape.heads)
    np.testing.assert_allclose(found[0], output[0], rtol=0, atol=4e-6)
    np.testing.assert_allclose(found[1, :4], output[1, :4], rtol=0, atol=4e-6)
    np.testing.assert_allclose(given["past_key"], keys, rtol=0, atol=1e-6)
