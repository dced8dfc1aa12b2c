"""Checks a bundle against this machine: its Snapdragon chip, and the version of onnxruntime-qnn."""

import re
from pathlib import Path

from megrez.engines.qnn.chips import CHIPS, Chip
from megrez.engines.qnn.layout import Compiled
from megrez.engines.qnn.library import EXTRA, PACKAGE, version
from megrez.runtime.errors import EngineError
from megrez.runtime.manifest import Device

# Linux and Android on a Snapdragon state the part number here, such as "SM8750".
MACHINE = Path("/sys/devices/soc0/machine")


def chip_at_hand(machine: Path = MACHINE) -> Chip | None:
    """None in the emulator, and for a chip that is not in the table."""
    try:
        product = machine.read_text(encoding="utf-8").strip().upper()
    except OSError:
        return None
    return next((chip for chip in CHIPS if product.startswith(chip.product)), None)


def check_chip(needed: Compiled, machine: Path = MACHINE) -> None:
    """Raise EngineError where contexts are for another chip: the library does not check."""
    here = chip_at_hand(machine)
    if here is not None and here.htp_arch != needed.htp_arch:
        raise EngineError(
            f"the bundle was compiled for {needed.chip} (v{needed.htp_arch}), this is a {here}: compile it with "
            f"--arch {here.name}"
        )


def check_version(device: Device) -> None:
    """Raise EngineError where the library is older than the one that compiled the contexts."""
    found = version()
    if _numbers(found) < _numbers(device.version):
        raise EngineError(
            f"the bundle's contexts were compiled by {PACKAGE} {device.version}, {found} is installed: run  "
            f"pip install -U 'megrez-compile[{EXTRA}]'"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
