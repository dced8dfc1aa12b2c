"""`npu.json`: what a folder of static graphs holds, for the compiler and the runtime; knows no library."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path

from megrez.engines.qnn.affine import Affine
from megrez.runtime.errors import BundleError
from megrez.runtime.records import parse

LAYOUT_FILE = "npu.json"
PREFILL, DECODE, HEAD = "prefill", "decode", "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The chip of the contexts. chip: its name; soc_model, htp_arch: see megrez.engines.qnn.chips.Chip.

    shared: whether the prefill and the decode graph of a part read one copy of its weights, in one file.
    """

    chip: str
    soc_model: int
    htp_arch: int
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Graphs PREFILL-00.onnx and so on, each of some layers, DECODE-00.onnx with the same layers, and HEAD.onnx.

    chunk: tokens of a step of the prefill graphs; the decode graphs take one, the LM head one. parts: how many of
    each. logits: the quantisation of the LM head's output. compiled: None for the reference
    graphs, of Q/DQ operators.
    """

    chunk: int
    parts: int
    logits: Affine
    compiled: Compiled | None

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of all graphs, in the order in which they run."""
        kinds = (PREFILL, DECODE)
        return (*(graph_name(kind, part) for kind in kinds for part in range(self.parts)), HEAD)

    def write(self, folder: Path) -> None:
        (folder / LAYOUT_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def graph_name(kind: str, part: int) -> str:
    return f"{kind}-{part:02d}"


def read_layout(folder: Path) -> Layout:
    """Raises BundleError, one line that names every fault."""
    path = folder / LAYOUT_FILE
    faults: list[str] = []
    try:
        layout = parse(Layout, json.loads(path.read_text(encoding="utf-8")), faults)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}): compile the bundle again") from error
    if faults:
        raise BundleError(f"{path} is not valid: {'; '.join(faults)}: compile the bundle again")
    return typing.cast(Layout, layout)
