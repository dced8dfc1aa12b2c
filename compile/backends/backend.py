"""The interface of backends: plan, disk_bytes and build; knows no engine."""

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

    checkpoint: the source of its weights; None where they are in a staged bundle. observed: calibration samples [S, T]
    on which to observe the range of every value; None for targets without such ranges, and for random weights.
    """

    model: ir.Model
    checkpoint: Checkpoint | None = None
    observed: NDArray[np.int64] | None = None


class Step(Protocol[Source]):
    """One step of a build; options, devices and library were checked when it was planned."""

    def disk_bytes(self, source: Source) -> int:
        """The disk space that its files take while they are written, from shapes alone."""
        ...

    def build(self, source: Source, folder: Path, report: Report) -> Device | None:
        """Write the engine's files into `folder`; returns the device that they need, None for any.

        Raises EngineError where the engine cannot be built.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """graph: builds from the lowered graph. staged: builds from the bundle of `graph`; None where that is it."""

    graph: Step[Lowered]
    staged: Step[Bundle] | None = None


class Backend(Protocol):
    """Builds the bundles of an engine."""

    def plan(self, target: Target, context: int, cache: KvCache, options: EngineOptions) -> Plan:
        """The steps to build for sequences of up to `context` tokens.

        Raises UsageError for what devices, library or engine do not support, MissingExtraError where the library is
        not installed, both before any work.
        """
        ...
