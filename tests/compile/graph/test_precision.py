"""Which format each tensor gets: by its name, its layer and the blocks its checkpoint has."""

from types import SimpleNamespace
from typing import Any

import pytest

from megrez.calibration.weights.blocks import BlockFormat
from megrez.compile.graph.precision import Precision, fit_block_size
from megrez.engines.targets import find_target
from megrez.runtime.errors import UsageError

Q4_1 = BlockFormat(bits=4, block=32, zero_points=True, offsets=True)
Q4_0 = BlockFormat(bits=4, block=32, zero_points=False, offsets=False)
Q8_0 = BlockFormat(bits=8, block=32, zero_points=False, offsets=False)
LAYERS = 16


def precision(target: str, own: dict[str, BlockFormat] | None = None) -> Precision:
    config = SimpleNamespace(num_hidden_layers=LAYERS, tie_word_embeddings=False)
    checkpoint: Any = SimpleNamespace(config=config, block_format=(own or {}).get)
    return Precision(checkpoint, find_target(target))


def bits(target: str, name: str, own: dict[str, BlockFormat] | None = None) -> int | None:
    wanted = precision(target, own).format_of(name)
    return None if wanted is None else wanted.bits


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.7.self_attn.q_proj.weight", 4),
        ("model.layers.7.self_attn.k_proj.weight", 4),
        ("model.layers.7.self_attn.v_proj.weight", 8),
        ("model.layers.0.mlp.gate_proj.weight", 4),
        ("model.layers.1.mlp.down_proj.weight", 8),
        ("model.layers.2.mlp.down_proj.weight", 4),
        ("model.layers.13.mlp.down_proj.weight", 4),
        ("model.layers.14.mlp.down_proj.weight", 8),
        ("model.layers.7.self_attn.o_proj.weight", 4),
        ("lm_head.weight", 4),
    ],
)
def test_int4_spares_what_loses_most(name: str, expected: int) -> None:
    assert bits("cpu-int4", name) == expected
    assert bits("cpu-int8", name) == 8
    assert bits("cpu-fp32", name) is None


def test_a_head_coarser_than_the_embedding_keeps_its_most_common_rows_fine() -> None:
    name = "model.embed_tokens.weight"
    looked_up = precision("cpu-int4").embedding_format()
    assert looked_up is not None and looked_up.bits == 8
    assert precision("cpu-int4").higher_precision_rows(name, 160) == 5
    assert precision("cpu-int4").higher_precision_rows("model.layers.7.mlp.up_proj.weight", 160) == 0
    assert (
        precision("cpu-int8").higher_precision_rows(name, 160)
        == precision("cpu-fp32").higher_precision_rows(name, 160)
        == 0
    )


def test_a_head_of_eight_bits_in_its_file_stays_as_it_is() -> None:
    name = "lm_head.weight"
    assert bits("cpu-int4", name, {name: Q8_0}) == 8
    assert precision("cpu-int4", {name: Q8_0}).higher_precision_rows(name, 160) == 0
    assert bits("cpu-fp32", name, {name: Q8_0}) is None


def test_a_head_of_four_bits_in_its_file_stays_as_it_is() -> None:
    name = "lm_head.weight"
    assert bits("cpu-int4", name, {name: Q4_0}) == 4
    assert precision("cpu-int4", {name: Q4_0}).higher_precision_rows(name, 160) == 0


def test_blocks_of_256_are_for_cpus() -> None:
    config: Any = SimpleNamespace(hidden_size=256, intermediate_size=512, num_attention_heads=4, head_dim=64)
    wide = find_target("cpu-int4").with_block(256)
    assert (
        fit_block_size(wide, config, requested=True) == wide and str(wide.weights) == "int4 block 256 with zero points"
    )
    with pytest.raises(UsageError, match=r"^--block-size 256 is for cpu and cuda targets: trt-int4 takes 128 or less"):
        fit_block_size(find_target("trt-int4").with_block(256), config, requested=True)


def test_blocks_of_the_targets_bits_stay_as_they_are() -> None:
    name = "model.layers.7.self_attn.v_proj.weight"
    assert bits("cpu-int4", name, {name: Q4_1}) == 4
    assert bits("cpu-int8", name, {name: Q4_1}) == 8


def test_only_tensors_stored_alike_are_grouped() -> None:
    q, k, v = (f"model.layers.7.self_attn.{kind}_proj.weight" for kind in "qkv")
    floats = precision("cpu-int4")
    assert floats.fusion_key(q) == floats.fusion_key(k) != floats.fusion_key(v)
    mixed = precision("cpu-int4", {q: Q4_1, k: Q4_1, v: Q8_0})
    assert mixed.fusion_key(q) == mixed.fusion_key(k) != mixed.fusion_key(v)
    assert len({precision("cpu-fp32", {q: Q4_1, v: Q8_0}).fusion_key(name) for name in (q, k, v)}) == 1
