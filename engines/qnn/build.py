"""Compile a folder of static graphs to contexts for one chip, one graph at a time; knows no checkpoint."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megrez.engines.qnn import EMBEDDING_FILE, ROTARY_FILE
from megrez.engines.qnn.chips import Chip
from megrez.engines.qnn.layout import DECODE, HEAD, PREFILL, Compiled, graph_name, read_layout
from megrez.engines.qnn.library import PACKAGE, PROVIDER, compile_options, create_session, version
from megrez.runtime.errors import EngineError, first_line
from megrez.runtime.manifest import Device

# QNN's limit of one context: what an NPU can address.
CONTEXT_LIMIT = 3584 << 20


def build(
    graphs: Path,
    folder: Path,
    chip: Chip,
    *,
    share_weights: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Device:
    """Compile the graphs of `graphs` into `folder`; returns the manifest's device requirements.

    share_weights: one context for the prefill and the decode graph of a part: half the size, but the emulator cannot
    open it. progress: called with each graph's name, how many are compiled and how many there are.
    Raises EngineError that names the graph with an unsupported operator, MissingExtraError without the library.
    """
    layout = read_layout(graphs)
    compiled = Compiled(chip=chip.name, soc_model=chip.soc_model, htp_arch=chip.htp_arch, shared=share_weights)
    groups = _groups(layout.parts, share_weights)
    done, total = 0, sum(map(len, groups))
    for group in groups:
        sessions = []  # a file that graphs share is written when the last of them is compiled
        for name in group:
            progress(f"compiling {name}", done, total)
            options = compile_options(compiled, folder / f"{name}.onnx", sharing=len(group) > 1, last=name == group[-1])
            sessions.append(_compile(graphs / f"{name}.onnx", options))
            done += 1
        del sessions
    progress("compiling", done, total)
    for table in (EMBEDDING_FILE, ROTARY_FILE):
        shutil.copyfile(graphs / table, folder / table)
    replace(layout, compiled=compiled).write(folder)
    return Device(
        library=PACKAGE,
        version=version(),
        capabilities=(chip.name, f"v{chip.htp_arch}"),
        slots=1,
        chunk=layout.chunk,
        max_logits=1,
        memory_bytes=_context_bytes(folder),
        version_compatible=True,
    )


def _groups(parts: int, share_weights: bool) -> list[list[str]]:
    """Graph names grouped by context binary."""
    pairs = [[graph_name(kind, part) for kind in (PREFILL, DECODE)] for part in range(parts)]
    return [*(pairs if share_weights else [[name] for pair in pairs for name in pair]), [HEAD]]


def _compile(graph: Path, options: Any) -> Any:
    try:
        session = create_session(graph, options)
    except Exception as error:
        raise EngineError(
            f"{PACKAGE} {version()} cannot compile {graph.stem}: {first_line(error)}: report this as a bug"
        ) from error
    check_assignment(graph.stem, session)
    return session


def check_assignment(name: str, session: Any) -> None:
    """Raise EngineError unless the session reports that every node was assigned to the NPU."""
    elsewhere = {}
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != PROVIDER:
            elsewhere[part.ep_name] = len(part.get_nodes())
    if elsewhere:
        counts = ", ".join(f"{count} nodes to {provider}" for provider, count in elsewhere.items())
        raise EngineError(f"{name} does not run entirely on the NPU: {counts}: report this as a bug")


def _context_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("*.bin")]
    with contextlib.suppress(ValueError):
        if (largest := max(sizes)) > CONTEXT_LIMIT:
            raise EngineError(
                f"a context has {largest >> 20} MiB, an NPU addresses {CONTEXT_LIMIT >> 20} MiB: report this as a bug"
            )
    return sum(sizes)
