"""Which form a matrix gets, that planning reads nothing, and that making it keeps one matrix and no more."""

import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from gguf.quants import dequantize, quantize

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.weight_formats import WeightFormat
from tests.gguf_models import make_gguf
from tests.graphs import FakeCheckpoint

INT4 = WeightFormat(bits=4, block=32, symmetric=False)
INT8 = WeightFormat(bits=8, block=32, symmetric=True)
RANDOM = np.random.default_rng(0)
TENSORS = {name: RANDOM.normal(size=(6, 96)).astype(np.float32) for name in "abc"}
GATE, UP, Q = (f"model.layers.0.{part}_proj.weight" for part in ("mlp.gate", "mlp.up", "self_attn.q"))


class Stored(FakeCheckpoint):
    """Tensors in blocks of the formats given."""

    def __init__(self, **formats: BlockFormat) -> None:
        super().__init__(TENSORS)
        self.formats = formats

    def block_format(self, name: str) -> BlockFormat | None:  # type: ignore[override]
        return self.formats.get(name)


def form(bits: int, *, offsets: bool = False) -> BlockFormat:
    return BlockFormat(bits=bits, block=32, zero_points=offsets, offsets=offsets)


@pytest.mark.parametrize(
    ("formats", "wanted", "keeps_blocks"),
    [
        ({}, INT4, False),
        ({"a": form(4)}, INT4, False),
        ({"a": form(4), "b": form(4)}, INT4, True),
        ({"a": form(4), "b": form(4)}, INT8, False),
        ({"a": form(4), "b": form(8)}, INT4, False),
        ({"a": form(4), "b": form(4, offsets=True)}, INT4, False),
        ({"a": form(8), "b": form(8)}, INT8, True),
    ],
)
def test_blocks_are_carried_where_all_sources_have_the_bits_wanted(
    formats: dict[str, BlockFormat], wanted: WeightFormat, keeps_blocks: bool
) -> None:
    checkpoint: Any = Stored(**formats)
    plan = Quantizer(checkpoint).plan(("a", "b"), 12, 96, wanted)
    assert (plan.keeps_blocks, plan.folded, plan.k, plan.blocks) == (keeps_blocks, False, 96, 3)
    assert (plan.bits, plan.block, plan.zero_points) == (wanted.bits, 32, not keeps_blocks and not wanted.symmetric)
    assert checkpoint.reads == []


CHANNELS = WeightFormat(bits=8, block=None, symmetric=True)
FP8 = WeightFormat(bits=8, block=None, symmetric=True, floating=True)
INT4_32 = WeightFormat(bits=4, block=32, symmetric=True)


@pytest.mark.parametrize(
    ("stored", "wanted", "keeps_blocks"),
    [
        (BlockFormat(bits=8, block=96, zero_points=False, offsets=False), CHANNELS, True),
        (BlockFormat(bits=8, block=96, zero_points=False, offsets=False, floating=True), FP8, True),
        (BlockFormat(bits=8, block=96, zero_points=False, offsets=False), FP8, False),
        (form(8), CHANNELS, False),
        (form(8), FP8, False),
        (form(4), INT4_32, True),
        (form(4, offsets=True), INT4_32, False),
        (form(4), WeightFormat(bits=4, block=64, symmetric=True), False),
    ],
)
def test_exactly_the_form_wanted_is_carried_where_no_other_will_do(
    stored: BlockFormat, wanted: WeightFormat, keeps_blocks: bool
) -> None:
    checkpoint: Any = Stored(a=stored, b=stored)
    plan = Quantizer(checkpoint, dequantize_linear=True).plan(("a", "b"), 12, 96, wanted)
    assert plan.keeps_blocks == keeps_blocks and (plan.k, plan.folded, plan.zero_points) == (96, False, False)
    assert (plan.bits, plan.block, plan.floating) == (wanted.bits, wanted.block or 96, wanted.floating)
    assert plan.per_channel == (wanted.block is None)


@pytest.mark.parametrize("wanted", [CHANNELS, FP8, INT4_32])
def test_exact_forms_have_positive_scales(wanted: WeightFormat) -> None:
    checkpoint: Any = FakeCheckpoint(TENSORS)
    quantizer = Quantizer(checkpoint, dequantize_linear=True)
    made = quantizer(quantizer.plan(("a", "b"), 12, 96, wanted))
    assert made.scales.shape == (12, 3 if wanted.block else 1) and (made.scales > 0).all()
    assert (made.floating, made.zero_points) == (wanted.floating, None)
    stacked = np.concatenate([TENSORS["a"], TENSORS["b"]])
    error = np.sqrt(((made.dequantize() - stacked) ** 2).mean())
    assert error < {CHANNELS: 0.01, FP8: 0.04, INT4_32: 0.15}[wanted]


def test_minima_widen_the_matrix() -> None:
    checkpoint: Any = Stored(a=form(4, offsets=True))
    plan = Quantizer(checkpoint).plan(("a",), 6, 96, INT4)
    assert (plan.keeps_blocks, plan.folded, plan.k, plan.blocks, plan.zero_points) == (True, True, 99, 4, True)


@pytest.mark.parametrize("wanted", [INT4, INT8])
def test_floats_are_stacked_and_rounded(wanted: WeightFormat) -> None:
    checkpoint: Any = FakeCheckpoint(TENSORS)
    quantizer = Quantizer(checkpoint)
    made = quantizer(quantizer.plan(("a", "b", "c"), 18, 96, wanted))
    assert (made.codes.shape, made.scales.shape, made.bits) == ((18, 96), (18, 3), wanted.bits)
    assert (made.zero_points is None) == wanted.symmetric
    stacked = np.concatenate(list(TENSORS.values()))
    # The most that a search may shorten a block's range by is 16 %.
    step = np.abs(stacked).max() * 2 / (2**wanted.bits - 1)
    assert np.abs(made.dequantize() - stacked).max() < step / 2 + 0.16 * np.abs(stacked).max() * (wanted.bits == 4)


def test_one_matrix_is_made_once_for_its_parts_and_the_one_before_is_freed() -> None:
    checkpoint: Any = FakeCheckpoint(TENSORS)
    quantizer = Quantizer(checkpoint)
    first, second = (quantizer.plan((name,), 6, 96, INT4) for name in "ab")
    made = quantizer(first)
    assert quantizer(first) is made and checkpoint.reads == ["a"]
    codes = weakref.ref(made.codes)
    alive_while_reading = []

    def read(name: str) -> Any:
        alive_while_reading.append(codes() is not None)
        return TENSORS[name]

    checkpoint.read = read
    del made
    quantizer(second)
    assert alive_while_reading == [False]


@pytest.mark.parametrize(("kind", "wanted"), [("Q4_0", INT4), ("Q8_0", INT8), ("Q4_1", INT4)])
@pytest.mark.parametrize("sources", [(GATE, UP), (Q,)])
def test_gguf_blocks_arrive_as_the_gguf_package_decodes_them(
    checkpoint_of: Any, tmp_path: Path, kind: str, wanted: WeightFormat, sources: tuple[str, ...]
) -> None:
    folder = checkpoint_of()
    quantizer = Quantizer(open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder, kind=kind))))
    stored = gguf.GGMLQuantizationType[kind]
    floats = safetensors.numpy.load_file(folder / "model.safetensors")
    expected = np.concatenate([dequantize(quantize(floats[name], stored), stored) for name in sources])
    plan = quantizer.plan(sources, *expected.shape, wanted)
    made = quantizer(plan)
    assert plan.keeps_blocks
    if kind != "Q4_1":
        np.testing.assert_array_equal(made.dequantize(), expected)
        return
    # Folded: the columns past k multiply the means of x over blocks.
    x = RANDOM.normal(size=(5, expected.shape[1]))
    means = x.reshape(5, -1, 32).mean(axis=-1)
    product = np.concatenate([x, means], axis=1) @ made.dequantize().astype(np.float64).T
    steps = np.abs(expected).max() / 7
    bound = np.abs(x.reshape(5, -1, 32).sum(axis=-1)).sum(axis=-1, keepdims=True) * steps / 2 / 14
    assert (np.abs(product - x @ expected.T) <= bound).all()


def test_a_short_last_block_is_rounded_on_its_own_scale() -> None:
    weights = np.ones((2, 40), np.float32)
    weights[:, 32:] = 1e-3
    checkpoint: Any = FakeCheckpoint({"a": weights})
    quantizer = Quantizer(checkpoint)
    made: BlockQuantized = quantizer(quantizer.plan(("a",), 2, 40, INT8))
    np.testing.assert_allclose(made.dequantize(), weights, rtol=1e-2)


@pytest.mark.parametrize(
    ("wanted", "per_channel"),
    [
        (WeightFormat(bits=4, block=32, symmetric=True, nested=True), False),
        (WeightFormat(bits=4, block=None, symmetric=True), True),
        (WeightFormat(bits=8, block=None, symmetric=True), True),
    ],
)
def test_what_an_npu_multiplies_is_made_as_it_was_planned(wanted: WeightFormat, per_channel: bool) -> None:
    quantizer = Quantizer(FakeCheckpoint(TENSORS), dequantize_linear=True)
    plan = quantizer.plan(("a",), 6, 96, wanted)
    assert (plan.per_channel, plan.nested, plan.blocks) == (per_channel, wanted.nested, 1 if per_channel else 3)
    made = quantizer(plan)
    assert made.scales.shape == (6, plan.blocks) and made.zero_points is None
    if wanted.nested:
        steps = 16 * made.scales / made.scales.max(axis=1, keepdims=True)
        np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-5)
    error = np.abs(made.dequantize() - TENSORS["a"])
    assert (error <= 0.6 * np.repeat(made.scales, plan.block, axis=1)[:, :96]).mean() > 0.95


@pytest.mark.parametrize(
    ("columns", "int4", "int8"),
    [(576, 64, 64), (640, 128, 128), (896, 128, 128), (1536, 256, 128), (2560, 256, 128), (90, 32, 32), (8, 16, 16)],
)
def test_blocks_that_pad_give_way_to_those_that_store_least(columns: int, int4: int, int8: int) -> None:
    """Rows of 576 in blocks of 256 take 3 x (1024 + 36) bits, of 128 5 x (512 + 36), of 64 9 x (256 + 36)."""
    coarse = WeightFormat(bits=4, block=256, symmetric=False), WeightFormat(bits=8, block=128, symmetric=True)
    plans = [Quantizer(Stored()).plan(("a",), 6, columns, one) for one in coarse]
    assert [plan.block for plan in plans] == [int4, int8]
    assert Quantizer(Stored(), dequantize_linear=True).plan(("a",), 6, columns, coarse[0]).block == 256
