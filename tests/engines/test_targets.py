"""The table of targets, and what is said of a name that is not in it."""

import pytest

from megrez.engines.targets import TARGETS, WeightFormat, find_target
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


def test_a_target_with_other_blocks_has_them_everywhere() -> None:
    coarse = find_target("cpu-int4").with_block(128)
    forms = (coarse.weights, coarse.sensitive, coarse.head)
    assert [(form.bits, form.block) for form in forms if form is not None] == [(4, 128), (8, 128), (8, 128)]


def test_float32_has_no_blocks() -> None:
    with pytest.raises(UsageError, match=r"^--block-size is for quantised weights, cpu-fp32 keeps float32: "):
        find_target("cpu-fp32").with_block(64)
