"""From a staged bundle to a bundle with an engine, on the device itself; needs neither torch nor the checkpoint."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from megrez.compile.backends.backend import Lowered, Plan
from megrez.compile.backends.choose import backend_of
from megrez.compile.backends.options import EngineOptions
from megrez.compile.bundle.describe import BYTES, tool_versions
from megrez.compile.bundle.output import check_output, check_space, locked
from megrez.compile.bundle.writer import new_bundle
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.report import Report
from megrez.engines.ort import MODEL_FILE
from megrez.engines.targets import STAGED, Target, find_target
from megrez.runtime import chat
from megrez.runtime import text as text_codec
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import FILE_NAME, KvCache, Manifest


def is_bundle(model: str) -> bool:
    return (Path(model) / FILE_NAME).is_file()


def build_staged(model: str, target: str | None, output: Path, options: EngineOptions, report: Report) -> Path:
    """Build the engine of the staged bundle `model` as the bundle `output`.

    target: None, or that of the staged bundle. Raises UsageError where `model` is not staged or the device cannot run
    it, BundleError where it is damaged, EngineError where its engine cannot be built.
    """
    staged = open_bundle(model)
    row = _target(staged, target)
    if output.resolve() == staged.path.resolve():
        raise UsageError(f"{output} is the staged bundle itself: choose another -o")
    check_output(output)
    plan = backend_of(row).plan(row, staged.manifest.context_length, _kv_cache(staged.manifest, row), options)
    if plan.staged is not None and options.chunk is not None:
        raise UsageError(f"{staged.path} was staged with its own --chunk: leave it out")
    with locked(output):
        build_from(staged, row, plan, output, report)
    return output


def build_from(staged: Bundle, target: Target, plan: Plan, output: Path, report: Report) -> None:
    """Write the bundle `output` of `target`'s engine, built from the staged bundle as planned."""
    if plan.staged is not None:
        check_space(output, plan.staged.disk_bytes(staged))
        with new_bundle(output) as new:
            device = plan.staged.build(staged, new.folder, report)
            new.finish(_manifest(staged.manifest, target), _text(staged), device)
        return
    graph = Lowered(model=ir.load(staged.path / MODEL_FILE))
    check_space(output, plan.graph.disk_bytes(graph))
    with new_bundle(output) as new:
        device = plan.graph.build(graph, new.folder, report)
        new.finish(_manifest(staged.manifest, target), _text(staged), device)


def _target(staged: Bundle, requested: str | None) -> Target:
    manifest = staged.manifest
    if manifest.engine not in STAGED.values():
        raise UsageError(
            f"{staged.path} is a finished bundle for {manifest.target}: give a checkpoint or a bundle of --stage onnx"
        )
    if requested not in (None, manifest.target):
        raise UsageError(f"{staged.path} was staged for {manifest.target}, not {requested}: leave --target out")
    return find_target(manifest.target)


def _kv_cache(staged: Manifest, target: Target) -> KvCache:
    cache = staged.kv_cache
    per_token = cache.bytes_per_token // BYTES[cache.dtype] * BYTES[target.kv_dtype]
    return KvCache(dtype=target.kv_dtype, bytes_per_token=per_token)


def _manifest(staged: Manifest, target: Target) -> Manifest:
    provenance = staged.provenance
    # The staged graph's fidelity on a CPU simulates that of an engine that may not run here.
    measured = None if staged.measured is None else replace(staged.measured, of="simulation")
    return replace(
        staged,
        engine=target.engine,
        kv_cache=_kv_cache(staged, target),
        provenance=replace(provenance, tools={**provenance.tools, **tool_versions(target.engine)}),
        measured=measured,
    )


def _text(staged: Bundle) -> TextAssets | None:
    tokenizer, template = staged.find(text_codec.FILE_NAME), staged.find(chat.FILE_NAME)
    if tokenizer is None:
        return None
    return TextAssets(
        tokenizer_json=tokenizer.read_bytes(),
        chat_template=None if template is None else template.read_text(encoding="utf-8"),
        bos_token=None,  # already in `tokens`
        eos_token=None,
        tokens=staged.manifest.tokens,
        sampling=staged.manifest.sampling,
    )
