"""The backend of TensorRT and TensorRT-RTX, which builds from a portable graph; knows no checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from megrez.compile.backends.backend import Lowered, Plan
from megrez.compile.backends.onnxruntime import refuse_npu_options
from megrez.compile.backends.options import EngineOptions
from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.compile.graph.passes.static_shapes import StaticShapes
from megrez.compile.report import Report
from megrez.engines.devices import find_capabilities
from megrez.engines.onnx_files import data_bytes
from megrez.engines.targets import NATIVE, Target
from megrez.engines.tensorrt.cuda import capability_at_hand
from megrez.engines.tensorrt.library import RTX, buildable, check_buildable, choose_library, load_library
from megrez.engines.tensorrt.plan import LEAST_SLOTS, PlanRequest
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Device, KvCache

# Prompt tokens per step, and the most logits that it returns: memory for speed.
CHUNK, LOGITS = 512, 64
LEAST_CONTEXT = 2
# The largest memory of a GPU that TensorRT supports: a B300's.
LARGEST_MEMORY = 288 * 10**9


@dataclass(frozen=True, slots=True)
class TensorRt:
    """See megrez.compile.backends.backend.Backend."""

    def plan(self, target: Target, context: int, cache: KvCache, options: EngineOptions) -> Plan:
        refuse_npu_options(target, options)
        capabilities = () if options.arch in (None, NATIVE) else find_capabilities(options.arch)
        if options.arch is not None:
            target.check_capabilities(capabilities)
        if context < LEAST_CONTEXT:
            raise UsageError(
                f"--context is {context}: TensorRT omits the mask of a cache of one token, and its engine cannot "
                f"be audited: choose {LEAST_CONTEXT} or more"
            )
        _check_batch(options.batch, context, cache)
        name = choose_library(options.builder)
        if options.hardware_compatible and name == RTX:
            raise UsageError("--hardware-compatible is TensorRT's, TensorRT-RTX builds for all of --arch: leave it out")
        library = load_library(name)
        here = None
        if capabilities:
            check_buildable(library, capabilities)
        elif name == RTX and options.arch is None:
            capabilities = tuple(one for one in buildable(library) if one >= (target.min_capability or 0))
        else:
            here = capability_at_hand(name)
            target.check_capabilities((here,))
        request = PlanRequest(
            library=name,
            capabilities=capabilities,
            here=here,
            slots=options.batch,
            chunk=min(CHUNK, context),
            rows=max(LOGITS, options.batch),
            workspace_bytes=options.workspace_bytes,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
        )
        return Plan(graph=Engine(request=request, context=context))


def _check_batch(batch: int, context: int, cache: KvCache) -> None:
    """Raise UsageError for a batch below 1, and for one whose KV cache exceeds every GPU's memory."""
    if batch < 1:
        raise UsageError(f"--batch is {batch}: give at least 1")
    one = context * cache.bytes_per_token
    if max(batch, LEAST_SLOTS) * one > LARGEST_MEMORY:
        raise UsageError(
            f"--batch is {batch}: the KV cache of {max(batch, LEAST_SLOTS)} sequences of {context} tokens takes "
            f"{max(batch, LEAST_SLOTS) * one / 1e9:.1f} GB ({one / 1e6:.3g} MB each) and the largest GPU has "
            f"{LARGEST_MEMORY / 1e9:.0f} GB: choose a smaller --batch or --context"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """See megrez.compile.backends.backend.Step and megrez.engines.tensorrt.build. Rewrites the graph it builds."""

    request: PlanRequest
    context: int

    def disk_bytes(self, source: Lowered) -> int:
        """Twice the weights: the graph is kept until the engine is complete."""
        return 2 * data_bytes(source.model)

    def build(self, source: Lowered, folder: Path, report: Report) -> Device:
        from megrez.engines.tensorrt.build import build

        for one in (HalfPrecision(), StaticShapes({"capacity": self.context})):
            one(source.model)
        total = data_bytes(source.model)
        report.stage(f"writing {total / 1e9:.2f} GB of weights for {self.request.library}")
        return build(source.model, folder, self.request, written=report.weights(total), building=report.phase)
