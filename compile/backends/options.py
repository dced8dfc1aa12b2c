"""The options of building an engine, for all engines; each backend refuses those that are not for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """arch: devices or capabilities, see find_capabilities; "native" for this machine's GPU, None for all that the
    library can build for; for NPUs one chip, see find_chip. builder: the library; None for the installed one.

    batch: the most sequences in a step. chunk, share_weights: of NPUs, see megrez.compile.backends.qnn. See
    megrez.engines.tensorrt.plan.PlanRequest for the rest.
    """

    arch: str | None = None
    builder: str | None = None
    batch: int = 1
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    chunk: int | None = None
    share_weights: bool = False


ANY_DEVICE = EngineOptions()
