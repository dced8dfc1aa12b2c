"""The table of Qualcomm chips: common names, part numbers and the ids QNN's compiler takes; knows no target."""

import difflib
import re
from dataclasses import dataclass

from megrez.runtime.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """product: the part number. soc_model: QNN's id. htp_arch: the version of its Hexagon NPU."""

    name: str
    product: str
    soc_model: int
    htp_arch: int

    def __str__(self) -> str:
        return f"{self.name} ({self.product}, v{self.htp_arch})"


# Source: QNN's soc_model numbers; each pair was compiled and run in the emulator.
CHIPS = (
    Chip(name="snapdragon-8-gen-2", product="SM8550", soc_model=43, htp_arch=73),
    Chip(name="snapdragon-x-elite", product="SC8380XP", soc_model=60, htp_arch=73),
    Chip(name="snapdragon-8-gen-3", product="SM8650", soc_model=57, htp_arch=75),
    Chip(name="snapdragon-8-elite", product="SM8750", soc_model=69, htp_arch=79),
    Chip(name="snapdragon-8-elite-gen-5", product="SM8850", soc_model=87, htp_arch=81),
)
VERSION = re.compile(r"v\d+")


def find_chip(text: str | None) -> Chip:
    """By name or product, "snapdragon-8-elite" or "SM8750", or the first of an NPU's version, "v79".

    QNN accepts any number and would compile for another chip. Raises UsageError with the list and the nearest name.
    """
    word = "" if text is None else text.strip().lower()
    for chip in CHIPS:
        if word in (chip.name, chip.product.lower(), f"v{chip.htp_arch}"):
            return chip
    listed = ", ".join(f"{chip.name} (v{chip.htp_arch})" for chip in CHIPS)
    if text is None:
        raise UsageError(f"--arch is missing: an NPU's context is for one chip, name it: {listed}")
    near = difflib.get_close_matches(word, [chip.name for chip in CHIPS], n=1)
    hint = f"did you mean {near[0]}? " if near and not VERSION.fullmatch(word) else ""
    raise UsageError(f"unknown chip {text!r}: {hint}one context is for one of {listed}")
