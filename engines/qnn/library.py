"""Loads onnxruntime-qnn, ONNX Runtime's plugin for Qualcomm NPUs and their emulator, and makes session options."""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megrez.engines.qnn.layout import Compiled
from megrez.runtime.errors import EngineError, MissingExtraError, first_line

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PROVIDER = "QNNExecutionProvider"
PACKAGE, EXTRA = "onnxruntime-qnn", "qnn"
NOTICE = (
    "Qualcomm's QNN libraries come with onnxruntime-qnn under Qualcomm's own licence (Qualcomm_LICENSE.pdf in that "
    "package): bundles hold none of them"
)
ERRORS_ONLY = 3


@functools.cache
def load_library() -> tuple[Any, Any]:
    """onnxruntime with the provider registered, and the provider's own module; MissingExtraError without it."""
    try:
        import onnxruntime

        plugin = importlib.import_module("onnxruntime_qnn")
    except ImportError as error:
        raise MissingExtraError(needed_for="a Snapdragon NPU's bundle", library=PACKAGE, extra=EXTRA) from error
    if any(device.ep_name == PROVIDER for device in onnxruntime.get_ep_devices()):
        return onnxruntime, plugin
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, plugin.get_library_path())
    except Exception as error:
        raise EngineError(f"{PACKAGE} {version()} cannot be loaded: {first_line(error)}") from error
    return onnxruntime, plugin


def version() -> str:
    return importlib.metadata.version(PACKAGE)


def context_options(chip: Compiled) -> Any:
    """Options of a session that runs a compiled context, whole on the NPU or its emulator."""
    return _options(chip, {})


def compile_options(chip: Compiled, context: Path, *, sharing: bool = False, last: bool = True) -> Any:
    """Options of a session that only compiles a graph to `context`.

    sharing: write one file of weights for this graph and those compiled before it since the last `last` one.
    """
    options = _options(chip, {"enable_htp_prepare_only": "1", "enable_block_quant_weight_optimization": "1"})
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": str(context)}
    if sharing:
        entries |= {"ep.share_ep_contexts": "1", **({"ep.stop_share_ep_contexts": "1"} if last else {})}
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return options


def create_session(graph: Path, options: Any) -> Any:
    """An onnxruntime.InferenceSession. The emulator prints to stdout, which belongs to the caller."""
    onnxruntime, _ = load_library()
    with _stdout_on_stderr():
        return onnxruntime.InferenceSession(graph, options)


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Redirects the file descriptor itself, for libraries that bypass sys.stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _options(chip: Compiled, provider: dict[str, str]) -> Any:
    onnxruntime, plugin = load_library()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER][:1]
    if not devices:
        raise EngineError(f"{PACKAGE} {version()} finds neither an NPU nor its emulator on this machine")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    known = {
        "backend_path": plugin.get_qnn_htp_path(),
        "soc_model": str(chip.soc_model),
        "htp_arch": str(chip.htp_arch),
    }
    options.add_provider_for_devices(devices, {**known, **provider})
    return options
