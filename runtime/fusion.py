"""`fusion.json` of a bundle: the kernels of its engine, as the audit after the build found them.

Independent of engines.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import cast

from megrez.runtime.errors import BundleError
from megrez.runtime.records import parse

FUSION_FILE = "fusion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The kernels of one step. attention_kernels: counts by kernel name. cache_copies: kernels that copy a cache.

    gemm_types: counts of projections by the data type of the multiplication: "fp8", or "int4" for weights only.
    unfused: projections and attentions that do not run as the graph specifies.
    """

    attention_kernels: dict[str, int]
    cache_copies: int
    gemm_types: dict[str, int]
    unfused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """decode: steps of one token. prefill: steps of many."""

    decode: Phase
    prefill: Phase

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Fusion":
        """Raises BundleError that names every fault."""
        faults: list[str] = []
        try:
            fusion = parse(cls, json.loads(text), faults)
        except ValueError as error:
            faults = [str(error)]
        if faults:
            raise BundleError(f"{FUSION_FILE} is not valid: {'; '.join(faults)}: compile the bundle again")
        return cast(Fusion, fusion)
