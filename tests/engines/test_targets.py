"""The table of targets, and what is said of a name that is not in it."""

from dataclasses import replace

import pytest

from megrez.engines.targets import TARGETS, find_target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.engines import MODULES
from megrez.runtime.errors import UsageError


def test_every_target_is_found_by_its_name_and_opened_by_some_engine() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    for target in TARGETS:
        assert find_target(target.name) is target
        assert target.engine in MODULES


@pytest.mark.parametrize(
    ("asked", "nearest"), [("cpu-int44", "cpu-int4"), ("cpu_int8", "cpu-int8"), ("fp32", "cpu-fp32")]
)
def test_an_unknown_target_is_answered_with_the_nearest_and_all(asked: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_target(asked)
    said = str(caught.value)
    assert said.startswith(f"unknown target {asked!r}: did you mean {nearest}? the targets are ")
    assert all(target.name in said for target in TARGETS)


def test_a_name_like_none_gets_no_guess() -> None:
    with pytest.raises(UsageError, match=r"^unknown target 'zzz': the targets are cpu-fp32, "):
        find_target("zzz")


def test_names_are_not_matched_loosely() -> None:
    with pytest.raises(UsageError):
        find_target("CPU-INT8")


def test_a_weight_format_is_told_in_words() -> None:
    assert str(WeightFormat(bits=8, block=32, symmetric=True)) == "int8 block 32"
    assert str(WeightFormat(bits=4, block=64, symmetric=False)) == "int4 block 64 with zero points"


def test_scales_per_channel_are_told_in_words() -> None:
    assert [str(find_target(f"trt-{kind}").weights) for kind in ("int8", "fp8", "int4", "nvfp4")] == [
        "int8 per channel",
        "fp8 per channel",
        "int4 block 128",
        "fp4 block 16",
    ]


def test_only_targets_that_multiply_small_inputs_need_their_ranges() -> None:
    assert {target.name: target.input_type for target in TARGETS if target.input_type} == {
        "trt-int8": "int8",
        "trt-fp8": "fp8",
        "trt-nvfp4": "fp4",
    }


def test_a_target_with_other_blocks_has_them_everywhere() -> None:
    fine = find_target("cpu-int4").with_block(32)
    forms = (fine.weights, fine.sensitive, fine.head, fine.embedding)
    assert [(form.bits, form.block) for form in forms if form is not None] == [(4, 32), (8, 32), (4, 32), (8, 32)]


def test_a_budget_for_accuracy_leaves_the_head_as_fine_as_the_embedding() -> None:
    chosen = find_target("cpu-int4").with_higher_precision(frozenset({"a"}))
    assert chosen.head == chosen.embedding == find_target("cpu-int4").embedding
    assert (
        find_target("trt-int8").with_head().with_higher_precision(frozenset()).head == find_target("trt-int8").weights
    )


def test_blocks_are_resized_where_there_are_any() -> None:
    fine = find_target("trt-int4").with_block(32)
    assert [str(form) for form in (fine.weights, fine.sensitive, fine.head)] == ["int4 block 32"] * 2 + ["None"]
    mixed = replace(find_target("trt-int4"), head=find_target("trt-fp8").weights).with_block(64)
    assert [str(mixed.weights), str(mixed.head)] == ["int4 block 64", "fp8 per channel"]


@pytest.mark.parametrize(
    ("name", "form"),
    [("trt-int8", "int8 per channel"), ("trt-fp8", "fp8 per channel"), ("trt-nvfp4", "fp4 block 16")],
)
def test_formats_without_a_choice_of_blocks(name: str, form: str) -> None:
    with pytest.raises(UsageError, match=rf"^--block-size is for weights in blocks to choose, {name} has {form}: "):
        find_target(name).with_block(64)


def test_float32_has_no_blocks() -> None:
    with pytest.raises(UsageError, match=r"^--block-size is for quantised weights, cpu-fp32 keeps float32: "):
        find_target("cpu-fp32").with_block(64)


def test_only_targets_whose_engine_is_built_have_a_stage_before_it() -> None:
    staged = find_target("trt-fp8").staged()
    assert (staged.name, staged.engine, staged.kv_dtype) == ("trt-fp8", "portable", "float32")
    staged = find_target("qnn-w8a16").staged()
    assert (staged.name, staged.engine, staged.kv_dtype) == ("qnn-w8a16", "qdq", "uint8")
    with pytest.raises(UsageError, match=r"^--stage onnx stops before an engine is built, cpu-int4 has no such step: "):
        find_target("cpu-int4").staged()


@pytest.mark.parametrize(
    ("name", "able", "lacking"),
    [("trt-fp8", (89, 90, 120), 87), ("trt-int4", (80, 87), 75), ("trt-fp16", (75, 120), None)],
)
def test_a_device_without_the_numbers_of_a_target_is_refused(
    name: str, able: tuple[int, ...], lacking: int | None
) -> None:
    target = find_target(name)
    target.check_capabilities(able)
    if lacking is None:
        return
    with pytest.raises(UsageError) as caught:
        target.check_capabilities((*able, lacking))
    said = str(caught.value)
    assert said.startswith(f"{name} needs sm_{target.min_capability} or later, ")
    assert f"(sm_{lacking}) cannot do it" in said and "rtx-5090" in said and "t4" not in said.partition("among")[2]


def test_nvidia_devices_are_not_for_other_targets() -> None:
    with pytest.raises(UsageError, match=r"^--arch names NVIDIA devices, cpu-int8 is for any CPU: leave it out$"):
        find_target("cpu-int8").check_capabilities((89,))


def test_an_npu_takes_one_scale_a_channel_where_others_need_blocks() -> None:
    target = find_target("qnn-w4a16")
    assert str(target.weights) == "int4 block 64 of a channel"
    whole, finer = target.with_block(None), target.with_block(32)
    assert str(whole.weights) == "int4 per channel" and whole.weights == whole.sensitive and whole.head == target.head
    assert finer.weights is not None and (finer.weights.block, finer.weights.nested) == (32, True)
    with pytest.raises(UsageError, match=r"^--block-size channel is for NPUs, trt-int4 has blocks: choose a number$"):
        find_target("trt-int4").with_block(None)


def test_a_cpu_runs_what_needs_no_device_of_its_own() -> None:
    assert all(target.runs_here == target.name.startswith("cpu-") for target in TARGETS)
    assert find_target("qnn-w8a16").staged().runs_here
    assert find_target("trt-int8").staged().runs_here and not find_target("trt-nvfp4").staged().runs_here
    assert all(target.half == target.name.startswith("cuda-") for target in TARGETS)
