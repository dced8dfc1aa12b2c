"""What an NPU's bundle is built for, and its two stages: static graphs, then contexts; knows no graph."""

from dataclasses import dataclass, replace
from pathlib import Path

from megrez.compile.commands.engine_options import EngineOptions
from megrez.compile.report import Report
from megrez.engines.qnn.build import build as compile_contexts
from megrez.engines.qnn.chips import Chip, find_chip
from megrez.engines.qnn.library import NOTICE, load_library
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Device

# Tokens of a prompt that one step takes.
CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphsPlan:
    """chunk: tokens of a step of the prefill graphs."""

    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextsPlan:
    """See megrez.engines.qnn.build.build."""

    chip: Chip
    share_weights: bool


def plan_npu(target: Target, context: int, options: EngineOptions) -> GraphsPlan | ContextsPlan:
    """Raises UsageError for a chip that is not known and for what static graphs do not take, MissingExtraError where
    the library is missing: before any work.
    """
    known = EngineOptions(arch=options.arch, chunk=options.chunk, share_weights=options.share_weights)
    if options != known:
        raise UsageError(
            f"--batch and a builder's options are for TensorRT engines, {target.name} takes one sequence in static "
            "shapes: leave them out"
        )
    chunk = min(CHUNK, context) if options.chunk is None else options.chunk
    if not 1 <= chunk <= context:
        raise UsageError(f"--chunk is {chunk}, a context of {context} tokens takes 1 to {context}: choose one of these")
    if target.engine == "qnn":
        chip = find_chip(options.arch)
        load_library()
        return ContextsPlan(chip=chip, share_weights=options.share_weights)
    if options != replace(EngineOptions(), chunk=options.chunk):
        raise UsageError("--arch and --share-weights come with the contexts: leave them out of --stage onnx")
    return GraphsPlan(chunk=chunk)


def build_contexts(graphs: Path, folder: Path, plan: ContextsPlan, report: Report) -> Device:
    """Compile the static graphs of a folder for the plan's chip."""
    report.stage(NOTICE)
    report.stage(f"compiling for {plan.chip}")
    return compile_contexts(graphs, folder, plan.chip, share_weights=plan.share_weights, progress=report.phase)
