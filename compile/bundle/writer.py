"""Write a bundle: the engine's files, the text assets, and the manifest last; knows no graph."""

import errno
import importlib.metadata
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megrez.calibration.results.record import Record
from megrez.compile.bundle.atomic_folder import atomic_folder
from megrez.compile.checkpoint.protocol import Checkpoint, TextAssets
from megrez.compile.checkpoint.rotated import RotatedCheckpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.checkpoint.text_assets import GREEDY
from megrez.compile.families.config import ModelConfig
from megrez.engines.targets import Target
from megrez.runtime import chat
from megrez.runtime import text as text_codec
from megrez.runtime.bundle import Bundle, sha256_of
from megrez.runtime.errors import BundleError, UsageError, first_line
from megrez.runtime.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    Architecture,
    Calibration,
    Device,
    File,
    KvCache,
    Manifest,
    Measured,
    Provenance,
    Tokens,
    stated_files,
)

TOOLS = ("gguf", "megrez-compile", "numpy", "onnx", "onnx-ir", "onnxruntime", "optimum", "torch", "transformers")
ENGINE_TOOLS = {"tensorrt": ("tensorrt-cu13", "tensorrt-rtx-cu13"), "qnn": ("onnxruntime-qnn",)}
BYTES = {"float32": 4, "float16": 2, "uint8": 1}
# Graph, tokenizer and manifest on top of the weights.
SMALL_FILES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a bundle says of itself. weights: "checkpoint" or "dummy"; record: the calibration, None without one."""

    checkpoint: Checkpoint
    target: Target
    context: int
    weights: str
    record: Record | None


def write_bundle(
    output: Path,
    manifest: Manifest,
    text: TextAssets | None,
    build: Callable[[Path], Device | None],
    measure: Callable[[Bundle], Measured | None] = lambda bundle: None,
) -> None:
    """Make the bundle `output`, whose engine files `build` writes into the folder it is given.

    manifest: see `describe`; its files are listed here, and its device is what `build` returns. measure: opens the
    finished bundle for the fidelity that its manifest will state, None to leave what it states.
    An older bundle of that name is replaced once the new one is whole.
    Raises BundleError when the disk is full, UsageError when `output` is something else than a bundle.
    """
    check_output(output)
    try:
        with atomic_folder(output) as folder:
            device = build(folder)
            if text is not None:
                _write_text(text, folder)
            manifest = replace(manifest, device=device, files=_list_files(folder))
            if faults := manifest.faults():
                raise BundleError(f"the bundle {output} would not open: {'; '.join(faults)}: report this as a bug")
            (folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
            if (found := measure(Bundle(path=folder, manifest=manifest))) is not None:
                measured = replace(manifest, measured=found)
                (folder / FILE_NAME).write_text(measured.to_json(), encoding="utf-8")
    except OSError as error:
        raise BundleError(_what_failed(error, output)) from error


def _what_failed(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: free some space or choose another -o"
    reason = error.strerror or str(error)
    if error.filename is None or Path(os.fsdecode(error.filename)).absolute().is_relative_to(output.absolute().parent):
        return f"cannot write {output}: {reason}: choose another -o"
    return f"cannot build {output}, {error.filename} failed: {reason}: see to that file and compile again"


def check_output(output: Path) -> None:
    """Raise UsageError if `output` exists and is no bundle, for it would be replaced, is where this program runs, or
    cannot be written.
    """
    try:
        if Path.cwd().is_relative_to(output.resolve()):
            raise UsageError(f"{output} is the current folder or holds it: give -o a folder of its own")
        if output.exists() and not _may_be_replaced(output):
            raise UsageError(f"{output} exists and is not a bundle: choose another -o or remove it")
        parent = _existing_parent(output)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise UsageError(f"-o {output} cannot be used ({first_line(error)}): choose another") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"-o {output} cannot be written, {parent} is no folder for you to write in: choose another")


def _may_be_replaced(output: Path) -> bool:
    """An empty folder, or a bundle in which nobody has put a file of his own."""
    if not output.is_dir():
        return False
    if not any(output.iterdir()):
        return True
    try:
        stated = stated_files((output / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False
    if stated is None:
        return False
    found = (path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir())
    return all(name == FILE_NAME or name in stated for name in found)


def _existing_parent(output: Path) -> Path:
    return next(folder for folder in output.absolute().parents if folder.exists())


def check_space(output: Path, weight_bytes: int) -> None:
    """Raise BundleError if the disk cannot hold the bundle."""
    parent = _existing_parent(output)
    free, needed = shutil.disk_usage(parent).free, weight_bytes + SMALL_FILES
    if free < needed:
        raise BundleError(
            f"the bundle needs {needed / 1e9:.1f} GB and the disk of {output} has {free / 1e9:.1f} GB free: "
            "free some space or choose another -o"
        )


def _write_text(text: TextAssets, folder: Path) -> None:
    (folder / text_codec.FILE_NAME).write_bytes(text.tokenizer_json)
    if text.chat_template is not None:
        (folder / chat.FILE_NAME).write_text(text.chat_template, encoding="utf-8")


def _list_files(folder: Path) -> tuple[File, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        File(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    )


def describe(content: Content) -> Manifest:
    """The manifest of a bundle whose files are not written yet.

    What calibration measured stands for an engine that cannot run here.
    """
    checkpoint, target = content.checkpoint, content.target
    config, text = checkpoint.config, checkpoint.text
    per_layer = 2 * config.num_key_value_heads * config.head_dim * BYTES[target.kv_dtype]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        engine=target.engine,
        context_length=content.context,
        architecture=_architecture(config),
        kv_cache=KvCache(dtype=target.kv_dtype, bytes_per_token=config.num_hidden_layers * per_layer),
        tokens=text.tokens if text is not None else Tokens(bos=None, pad=None, stop=(), add_bos=False),
        sampling=text.sampling if text is not None else GREEDY,
        provenance=Provenance(
            source=checkpoint.source,
            weights=content.weights,
            quantization=_quantization(target, checkpoint),
            calibration=None
            if content.record is None
            else Calibration(algorithm=content.record.algorithm, **asdict(content.record.text)),
            tools=tool_versions(target.engine),
        ),
        measured=None if target.runs_here else _simulated(content),
        device=None,
        files=(),
    )


def _simulated(content: Content) -> Measured | None:
    record = content.record
    if record is None or record.fidelity is None:
        return None
    return Measured(of="simulation", text=record.text.source, fidelity=record.fidelity)


def _quantization(target: Target, checkpoint: Checkpoint) -> str:
    if target.weights is None:
        return "none"
    sensitive = "" if target.sensitive == target.weights else f", the most sensitive {target.sensitive}"
    inputs = "" if target.inputs is None else f", their inputs {target.inputs} per tensor"
    head, embedding = (target.kv_dtype if form is None else form for form in (target.head, target.embedding))
    if target.observes:
        inputs, embedding = f", all activations {target.activations}", "uint16"
    own = any(checkpoint.block_format(name) for name in expected_tensors(checkpoint.config))
    kept = "; the checkpoint's own blocks kept" if own and target.inputs is None and not target.observes else ""
    turned = "; turned by a rotation first" if isinstance(checkpoint, RotatedCheckpoint) else ""
    return f"projections {target.weights}{sensitive}{inputs}; embedding {embedding}, head {head}{kept}{turned}"


def _architecture(config: ModelConfig) -> Architecture:
    return Architecture(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
    )


def tool_versions(engine: str) -> dict[str, str]:
    """What is installed of the tools that a bundle of `engine` may have been made with."""
    found = importlib.metadata.distributions()
    installed = {distribution.name.replace("_", "-"): distribution.version for distribution in found}
    return {tool: installed[tool] for tool in (*TOOLS, *ENGINE_TOOLS.get(engine, ())) if tool in installed}
