"""What the pipeline asks of a backend: plan, disk_bytes and build; knows no engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.compile.backends.options import EngineOptions
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.report import Report
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle
from megrez.runtime.manifest import Device, KvCache

Source = TypeVar("Source", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A graph in its target's dialect.

    checkpoint: where its weights come from; None where they lie in a staged bundle. observed: samples [S, T] of the
    calibration text, to find the range of every value; None for targets without such ranges, and for random weights.
    """

    model: ir.Model
    checkpoint: Checkpoint | None = None
    observed: NDArray[np.int64] | None = None


class Step(Protocol[Source]):
    """One step of a build, whose options, devices and library were checked when it was planned."""

    def disk_bytes(self, source: Source) -> int:
        """The disk space that its files take while they are made, from shapes alone."""
        ...

    def build(self, source: Source, folder: Path, report: Report) -> Device | None:
        """Write the engine's files into `folder`; the device that they need, None for any.

        Raises EngineError where the engine cannot be built.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """graph: what is built from the lowered graph. staged: what is then built from the bundle that `graph` wrote; None
    where that is the engine already.
    """

    graph: Step[Lowered]
    staged: Step[Bundle] | None = None


class Backend(Protocol):
    """How the bundles of an engine are built."""

    def plan(self, target: Target, context: int, cache: KvCache, options: EngineOptions) -> Plan:
        """What to build for sequences of up to `context` tokens.

        Raises UsageError for what the devices, the library or the engine cannot do, MissingExtraError where there is no
        library, both before any work.
        """
        ...
