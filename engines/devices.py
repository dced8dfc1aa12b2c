"""The table of NVIDIA devices: common names and compute capabilities; independent of targets."""

import difflib
import re
from collections.abc import Iterable

from megrez.runtime.errors import UsageError

# Source: NVIDIA's list of CUDA GPUs and their compute capabilities; the number is ten times major plus minor.
CAPABILITIES = {
    "t4": 75,
    "a100": 80,
    "a30": 80,
    "a10": 86,
    "a40": 86,
    "rtx-3060": 86,
    "rtx-3090": 86,
    "rtx-a6000": 86,
    "orin": 87,
    "rtx-4060": 89,
    "rtx-4090": 89,
    "rtx-6000-ada": 89,
    "l4": 89,
    "l40s": 89,
    "h100": 90,
    "h200": 90,
    "gh200": 90,
    "b200": 100,
    "b300": 103,
    "thor": 110,
    "rtx-5060": 120,
    "rtx-5090": 120,
    "rtx-pro-6000": 120,
    "dgx-spark": 121,
}
KNOWN = sorted(set(CAPABILITIES.values()))
NUMBERED = re.compile(r"sm_?(\d+)")


def find_capabilities(text: str) -> tuple[int, ...]:
    """Compute capabilities of a comma-separated list, "rtx-4090,sm_120" → (89, 120): sorted, without duplicates.

    Raises UsageError for an unknown device, with the most similar name.
    """
    return tuple(sorted({_capability(word) for word in text.lower().replace(" ", "").split(",")}))


def devices_of(capabilities: Iterable[int]) -> str:
    """The names of the devices that have one of `capabilities`."""
    wanted = set(capabilities)
    return ", ".join(name for name, capability in CAPABILITIES.items() if capability in wanted)


def spell(capabilities: Iterable[int]) -> str:
    """ "sm_89, sm_120"."""
    return ", ".join(f"sm_{capability}" for capability in capabilities)


def _capability(word: str) -> int:
    numbered = NUMBERED.fullmatch(word)
    if numbered is not None and int(numbered[1]) in KNOWN:
        return int(numbered[1])
    if word in CAPABILITIES:
        return CAPABILITIES[word]
    near = difflib.get_close_matches(word, CAPABILITIES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"unknown device {word!r}: {hint}give one of {', '.join(CAPABILITIES)}, or a capability of {spell(KNOWN)}"
    )
