"""An ONNX file to an engine: TensorRT's parser and builder, two optimisation profiles in one plan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megrez.engines.tensorrt.library import RTX
from megrez.engines.tensorrt.log import largest, open_log
from megrez.runtime.errors import EngineError

# A profile of one sequence alone has weights in a layout of its own, and the plan has them twice.
LEAST_SLOTS = 2

Phase = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """library: "tensorrt_rtx" or "tensorrt". capabilities: to build for; empty for this machine's GPU, `here`.

    slots, chunk, max_logits: most sequences, tokens per sequence, and tokens with logits of a step.
    workspace_bytes: most device memory for intermediate results, None for no limit. version_compatible: the plan also
    opens in later releases of TensorRT. hardware_compatible: it also runs on later GPUs than the one at hand.
    """

    library: str
    capabilities: tuple[int, ...]
    slots: int
    chunk: int
    max_logits: int
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    here: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """version: the library's. log: its messages. memory_bytes: of the device, for weights and intermediate results."""

    version: str
    log: list[str]
    memory_bytes: int


def build_plan(
    library: Any, graph: Path, plan: Path, request: PlanRequest, progress: Phase = lambda name, done, total: None
) -> Built:
    """Write the engine of the ONNX file `graph` to `plan`, piece by piece.

    progress: called with the builder's outermost phases by name, steps done and steps in all.
    Raises EngineError with the library's own message where it refuses the graph.
    """
    log = open_log(library)
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(f"{request.library} {library.__version__} cannot parse the graph: {_parser_error(parser)}")
    config = _configure(library, builder, network, request)
    monitor = _monitor(library, progress, log)  # must outlive the build
    config.progress_monitor = monitor
    with plan.open("wb") as file:
        writer = _writer(library, file.write)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.failure is not None:
            raise writer.failure
    if log.interrupted or monitor.interrupted:
        raise KeyboardInterrupt
    if not built:
        raise EngineError(f"{request.library} {library.__version__} cannot build the engine: {_first(log.errors)}")
    memory = largest(log.lines, "Total Weights Memory:") + largest(log.lines, "Total Activation Memory:")
    return Built(version=library.__version__, log=log.lines, memory_bytes=memory)


def _configure(library: Any, builder: Any, network: Any, request: PlanRequest) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if request.library == RTX:
        _set_capabilities(config, library, request)
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)  # a step that allocates cannot be recorded
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    slots = max(request.slots, LEAST_SLOTS)
    # Without a profile of single tokens, every decode step would expand the KV cache to all query heads.
    for width, logits in ((1, slots), (request.chunk, request.max_logits)):
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            profile.set_shape(tensor.name, *_range(tensor, slots, width, logits))
        config.add_optimization_profile(profile)
    return config


def _set_capabilities(config: Any, library: Any, request: PlanRequest) -> None:
    """Build for the requested capabilities, or this machine's GPU: TensorRT-RTX takes others where none is set."""
    names = [f"SM{capability}" for capability in request.capabilities] or ["CURRENT"]
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        if not config.set_compute_capability(getattr(library.ComputeCapability, name), i):
            raise EngineError(f"{request.library} {library.__version__} cannot build for {name}: choose another --arch")


def _range(tensor: Any, slots: int, width: int, logits: int) -> list[tuple[int, ...]]:
    """Minimum, optimum and maximum shape of an input; optimised for one sequence."""
    if tensor.name == "input_ids":
        return [(1, 1), (1, width), (slots, width)]
    if tensor.name == "logits_index":
        return [(1,), (1,), (logits,)]
    fixed = tuple(tensor.shape)[1:]
    return [(1, *fixed), (1, *fixed), (slots, *fixed)]


def _writer(library: Any, write: Callable[[bytes], int]) -> Any:
    class Writer(library.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IStreamWriter.__init__(self)
            self.failure: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return write(data)
            except OSError as error:  # raised through the library it would be lost
                self.failure = error
                return 0

    return Writer()


def _monitor(library: Any, progress: Phase, log: Any) -> Any:
    """Ctrl-C is raised in its methods or the log's, where Python runs; passing through the library would lose it."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.totals[phase_name] = num_steps
                self.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.totals:
                self.report(phase_name, step + 1, self.totals[phase_name])
            return not (self.interrupted or log.interrupted)  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            if (total := self.totals.pop(phase_name, None)) is not None:
                self.report(phase_name, total, total)

        def report(self, phase_name: str, done: int, total: int) -> None:
            try:
                progress(phase_name, done, total)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


def _parser_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "no reason was given"
    error = parser.get_error(0)
    return f"{error.node_operator()} {error.node_name()}: {error.desc().splitlines()[0]}"


def _first(messages: list[str]) -> str:
    return messages[0].splitlines()[0] if messages else "no reason was given"
