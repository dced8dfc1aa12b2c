"""Kernels that do what the graph asks pass; each that does not is named with its layer and phase."""

from dataclasses import replace

import pytest

from megrez.engines.tensorrt.audit import audit, gemm_type
from megrez.engines.tensorrt.graph import GraphSpec
from megrez.engines.tensorrt.kernels import Kernel, Tensor
from megrez.runtime.fusion import Phase

CAPACITY = 256
SPEC = GraphSpec(projections={"down": "fp8", "lm_head": "fp16"}, attentions=("attn",), capacity=CAPACITY)


def tensor(dtype: str, *dims: int, name: str = "x") -> Tensor:
    return Tensor(name=name, dims=dims, dtype=dtype)


KEY = tensor("Half", -1, 2, CAPACITY, 64, name="present.0.key")
MASK = tensor("Bool", -1, 1, 1, CAPACITY)
QUERY = tensor("Half", -1, 8, 1, 64)


def kernel(name: str, kind: str = "kgen", nodes: tuple[str, ...] = (), **tensors: tuple[Tensor, ...]) -> Kernel:
    parts = {"inputs": (), "constants": (), "outputs": (), **tensors}
    return Kernel(name=name, kind=kind, tactic=f"{name}_0xab", profile=0, nodes=nodes, **parts)


DOWN = kernel("down", "gemm", ("down",), inputs=(tensor("FP8", -1, 16),), constants=(tensor("FP8", 16, 8),))
HEAD = kernel("head", "gemm", ("lm_head",), inputs=(tensor("Half", -1, 8),), constants=(tensor("Half", 8, 99),))
UPDATE = kernel("scatter", nodes=("attn",), inputs=(KEY,), outputs=(KEY, MASK))
ATTENTION = kernel("_gemv_mha_v1", nodes=("attn",), inputs=(KEY, QUERY, MASK), outputs=(QUERY,))
MOVE = kernel("move", nodes=("attn",), inputs=(KEY,), outputs=(tensor("Half", -1, 64, CAPACITY),))
SOUND = (DOWN, HEAD, UPDATE, ATTENTION)


def in_both(*kernels: Kernel) -> list[Kernel]:
    return [*kernels, *(replace(one, profile=1) for one in kernels)]


def test_sound_kernels_are_counted_and_pass() -> None:
    fusion, faults = audit(SPEC, in_both(*SOUND), ["fine"])
    assert faults == []
    expected = Phase(
        attention_kernels={"_gemv_mha_v1": 1}, cache_copies=0, gemm_types={"fp8": 1, "fp16": 1}, unfused=()
    )
    assert (fusion.decode, fusion.prefill) == (expected, expected)


def changed(old: Kernel, new: Kernel | None) -> list[Kernel]:
    """The sound kernels, with one replaced in decoding."""
    decode = [new if one is old else one for one in SOUND]
    return [one for one in decode if one is not None] + [replace(one, profile=1) for one in SOUND]


@pytest.mark.parametrize(
    ("kernels", "said", "unfused"),
    [
        (
            changed(DOWN, replace(DOWN, inputs=(tensor("Half", -1, 16),))),
            "down should multiply in fp8 but multiplies in fp8*fp16 in decode",
            ("down",),
        ),
        (
            changed(DOWN, replace(DOWN, inputs=HEAD.inputs, constants=HEAD.constants)),
            "down should multiply in fp8 but multiplies in fp16 in decode",
            ("down",),
        ),
        (changed(DOWN, None), "down should multiply in fp8 but multiplies in nothing in decode", ("down",)),
        (changed(DOWN, replace(DOWN, kind="kgen")), "multiplies in nothing in decode", ("down",)),
        (changed(ATTENTION, None), "attn should be one fused kernel but is 0 in decode", ("attn",)),
        (
            changed(ATTENTION, replace(ATTENTION, inputs=(KEY, QUERY))),
            "attn has no mask in _gemv_mha_v1 in decode",
            ("attn",),
        ),
        ([*changed(DOWN, DOWN), MOVE], "present.0.key is copied by move in decode", ()),
    ],
)
def test_a_kernel_that_does_otherwise_is_named(kernels: list[Kernel], said: str, unfused: tuple[str, ...]) -> None:
    fusion, faults = audit(SPEC, kernels, [])
    assert len(faults) == 1 and said in faults[0]
    assert (fusion.decode.unfused, fusion.prefill.unfused) == (unfused, ())


def test_prefill_may_spread_a_cache_over_its_heads_and_that_is_counted() -> None:
    fusion, faults = audit(SPEC, [*in_both(*SOUND), replace(MOVE, profile=1)], [])
    assert faults == [] and (fusion.decode.cache_copies, fusion.prefill.cache_copies) == (0, 1)


def test_a_cache_that_is_not_written_in_place_is_a_fault_in_both_phases() -> None:
    past = replace(KEY, name="past_key_values.0.key")
    copy = kernel("copy", inputs=(past,), outputs=(KEY,))
    _, faults = audit(SPEC, in_both(*SOUND, copy), [])
    assert faults == [f"past_key_values.0.key is copied by copy in {phase}" for phase in ("decode", "prefill")]


def test_an_input_that_the_parser_dropped_is_a_fault() -> None:
    _, faults = audit(SPEC, in_both(*SOUND), ["ok", " Unused Input: lengths "])
    assert faults == ["the parser dropped an input: Unused Input: lengths"]


def test_two_products_of_one_projection_must_agree() -> None:
    other = replace(DOWN, name="down2", inputs=HEAD.inputs, constants=HEAD.constants)
    fusion, faults = audit(SPEC, [*in_both(*SOUND), other], [])
    assert faults == ["down should multiply in fp8 but multiplies in fp16+fp8 in decode"]
    assert fusion.decode.gemm_types == {"fp16+fp8": 1, "fp16": 1}


@pytest.mark.parametrize(
    ("inputs", "weights", "name"),
    [("fp8", "fp8", "fp8"), ("fp16", "int4", "int4"), ("fp16", "fp8", "fp8*fp16"), ("int8", "int8", "int8")],
)
def test_products_are_named_by_what_they_multiply(inputs: str, weights: str, name: str) -> None:
    assert gemm_type(inputs, weights) == name
