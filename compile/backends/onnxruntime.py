"""The backend of ONNX Runtime, whose engine files are the graph and its weights; knows no checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from megrez.compile.backends.backend import Lowered, Plan
from megrez.compile.backends.options import EngineOptions
from megrez.compile.report import Report
from megrez.engines.devices import find_capabilities
from megrez.engines.onnx_files import data_bytes, write_onnx
from megrez.engines.targets import NATIVE, Target
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import KvCache


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """See megrez.compile.backends.backend.Backend."""

    def plan(self, target: Target, context: int, cache: KvCache, options: EngineOptions) -> Plan:
        refuse_npu_options(target, options)
        if options.arch is not None:
            target.check_capabilities(() if options.arch == NATIVE else find_capabilities(options.arch))
        if options != EngineOptions(arch=options.arch):
            raise UsageError(f"--batch and the builder's options are for TensorRT engines, {target.name} builds none")
        return Plan(graph=GraphFiles())


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """The graph and its weights as they are. See megrez.compile.backends.backend.Step."""

    def disk_bytes(self, source: Lowered) -> int:
        return data_bytes(source.model)

    def build(self, source: Lowered, folder: Path, report: Report) -> None:
        total = data_bytes(source.model)
        report.stage(f"writing {total / 1e9:.2f} GB of weights")
        write_onnx(source.model, folder, progress=report.weights(total))


def refuse_npu_options(target: Target, options: EngineOptions) -> None:
    """Raise UsageError for options that only NPUs have."""
    if options.chunk is not None or options.share_weights:
        raise UsageError(
            f"--chunk and --share-weights are for NPUs, {target.name} is for {target.devices}: leave them out"
        )
