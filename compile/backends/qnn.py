"""The backend of NPUs, in two steps: from the lowered graph to static graphs, from those to contexts for one chip."""

from dataclasses import dataclass, replace
from pathlib import Path

from megrez.compile.backends.backend import Lowered, Plan
from megrez.compile.backends.options import EngineOptions
from megrez.compile.report import Report
from megrez.engines.onnx_files import data_bytes
from megrez.engines.qnn.build import build as compile_contexts
from megrez.engines.qnn.chips import Chip, find_chip
from megrez.engines.qnn.library import NOTICE, load_library
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Device, KvCache

# Prompt tokens per step.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Qnn:
    """See megrez.compile.backends.backend.Backend. Refuses unknown chips and options of other engines."""

    def plan(self, target: Target, context: int, cache: KvCache, options: EngineOptions) -> Plan:
        npu_options = EngineOptions(arch=options.arch, chunk=options.chunk, share_weights=options.share_weights)
        if options != npu_options:
            raise UsageError(
                f"--batch and a builder's options are for TensorRT engines, {target.name} takes one sequence in static "
                "shapes: leave them out"
            )
        chunk = min(CHUNK, context) if options.chunk is None else options.chunk
        if not 1 <= chunk <= context:
            raise UsageError(
                f"--chunk is {chunk}, a context of {context} tokens takes 1 to {context}: choose one of these"
            )
        graphs = StaticGraphs(context=context, chunk=chunk)
        if target.engine == "qnn":
            chip = find_chip(options.arch)
            load_library()
            return Plan(graph=graphs, staged=Contexts(chip=chip, share_weights=options.share_weights))
        if options != replace(EngineOptions(), chunk=options.chunk):
            raise UsageError("--arch and --share-weights are for contexts, not for --stage onnx: leave them out")
        return Plan(graph=graphs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticGraphs:
    """chunk: prompt tokens per step. See megrez.compile.backends.backend.Step."""

    context: int
    chunk: int

    def disk_bytes(self, source: Lowered) -> int:
        return data_bytes(source.model)

    def build(self, source: Lowered, folder: Path, report: Report) -> None:
        """Raises CheckpointError where a value is not finite on the calibration text."""
        from megrez.compile.graph.static.graphs import write_static_graphs

        assert source.checkpoint is not None, "static graphs need a checkpoint"
        write_static_graphs(
            source.model, source.checkpoint, source.observed, folder, context=self.context, chunk=self.chunk,
            report=report,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """See megrez.compile.backends.backend.Step and megrez.engines.qnn.build.build."""

    chip: Chip
    share_weights: bool

    def disk_bytes(self, source: Bundle) -> int:
        return source.size * (1 if self.share_weights else 2)

    def build(self, source: Bundle, folder: Path, report: Report) -> Device:
        report.stage(NOTICE)
        report.stage(f"compiling for {self.chip}")
        return compile_contexts(source.path, folder, self.chip, share_weights=self.share_weights, progress=report.phase)
