"""Chips by the names that people use; what is no chip is refused before QNN would take it for another."""

import pytest

from megrez.engines.qnn.chips import CHIPS, find_chip
from megrez.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "soc_model", "htp_arch"),
    [
        ("snapdragon-8-elite", 69, 79),
        ("Snapdragon-8-Gen-3", 57, 75),
        ("SM8850", 87, 81),
        ("snapdragon-x-elite", 60, 73),
        ("v73", 43, 73),
        (" v79 ", 69, 79),
    ],
)
def test_a_chip_has_its_numbers(text: str, soc_model: int, htp_arch: int) -> None:
    chip = find_chip(text)
    assert (chip.soc_model, chip.htp_arch) == (soc_model, htp_arch)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("snapdragon-8-elit", "did you mean snapdragon-8-elite? "),
        ("v68", "unknown chip 'v68': one context is for one of snapdragon-8-gen-2 (v73), "),
        ("rtx-4090", "unknown chip 'rtx-4090': "),
        ("v73,v75", "unknown chip 'v73,v75': "),
        (None, "--arch is missing: "),
    ],
)
def test_what_is_no_chip_is_told_the_list(text: str | None, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_chip(text)
    assert said in str(caught.value) and all(chip.name in str(caught.value) for chip in CHIPS)
