"""The list of kernels that a TensorRT builder prints when it is done, as records; knows no model.

Written at VERBOSE severity with ProfilingVerbosity.DETAILED, one kernel a line; no GPU is needed for it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

HEADING = "Layers:"
KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: ?(?P<metadata>.*)"
)
TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^]]*)\].*?Datatype: (?P<dtype>\w+)")
PROFILE = re.compile(r" \[profile (\d+)\]")
ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
# A group of kernels that are compiled together, "_myl1_12"; all of it belongs to one profile.
GROUP = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """dims: -1 where dynamic. dtype: TensorRT's name, such as "Half" or "FP8"."""

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One line of the list. kind: "gemm", "kgen", … nodes: those of the ONNX graph that it takes part in."""

    name: str
    kind: str
    tactic: str
    profile: int
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]


def read_kernels(lines: Iterable[str]) -> list[Kernel]:
    """The kernels that the log's `lines` list, in their order; empty where no list was printed."""
    text = "\n".join(lines)
    start = text.rfind(f"{HEADING}\n")
    found = [match for match in KERNEL.finditer(text, start)] if start >= 0 else []
    profiles = _profiles(found)
    return [_kernel(match, profiles.get(_group(match), 0)) for match in found]


def _profiles(found: list[re.Match[str]]) -> dict[str, int]:
    """The optimisation profile of each group: tensor names carry it for all but the first profile."""
    return {_group(match): int(named[1]) for match in found if (named := PROFILE.search(match[0])) is not None}


def _group(match: re.Match[str]) -> str:
    group = GROUP.search(match["name"])
    return group[1] if group is not None else ""


def _kernel(match: re.Match[str], profile: int) -> Kernel:
    return Kernel(
        name=PROFILE.sub("", match["name"]),
        kind=match["kind"],
        tactic=match["tactic"],
        profile=profile,
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
        nodes=tuple(ONNX_NODE.findall(match["metadata"])),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=PROFILE.sub("", found["name"]),
            dims=tuple(int(dim) for dim in found["dims"].split(",") if dim),
            dtype=found["dtype"],
        )
        for found in TENSOR.finditer(text)
    )
