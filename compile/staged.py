"""From what `--stage onnx` wrote to a bundle with an engine, on the device itself; needs neither torch nor a model."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from megrez.compile.backends.engine import build_engine, disk_bytes, plan_request
from megrez.compile.backends.npu import ContextsPlan, build_contexts
from megrez.compile.bundle.writer import BYTES, check_output, check_space, tool_versions, write_bundle
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.commands.engine_options import EngineOptions
from megrez.compile.report import Report
from megrez.engines.ort import MODEL_FILE
from megrez.engines.targets import STAGED, Target, find_target
from megrez.engines.tensorrt.plan import PlanRequest
from megrez.runtime import chat
from megrez.runtime import text as text_codec
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import FILE_NAME, KvCache, Manifest, Measured


def is_bundle(model: str) -> bool:
    return (Path(model) / FILE_NAME).is_file()


def build_staged(model: str, target: str | None, output: Path, options: EngineOptions, report: Report) -> Path:
    """Build the engine of the staged bundle `model` into a bundle of its own.

    target: None, or that of the staged bundle. Raises UsageError where `model` is no such bundle or the device cannot
    run it, BundleError where it is damaged, EngineError where its engine cannot be built.
    """
    staged = open_bundle(model)
    row = _target(staged, target)
    if output.resolve() == staged.path.resolve():
        raise UsageError(f"{output} is the staged bundle itself: give the engine's bundle another -o")
    check_output(output)
    context = staged.manifest.context_length
    plan = plan_request(row, context, options)
    manifest, text = _manifest(staged.manifest, row), _text(staged)
    if isinstance(plan, ContextsPlan):
        if options.chunk is not None:
            raise UsageError(f"{staged.path} was cut into steps of so many tokens already: leave --chunk out")
        check_space(output, staged.size * (1 if plan.share_weights else 2))
        write_bundle(output, manifest, text, lambda folder: build_contexts(staged.path, folder, plan, report))
        return output
    assert isinstance(plan, PlanRequest), "only engines and contexts are built from what was staged"
    graph = ir.load(staged.path / MODEL_FILE)
    check_space(output, disk_bytes(graph, plan))
    write_bundle(output, manifest, text, lambda folder: build_engine(graph, folder, context, plan, report))
    return output


def _target(staged: Bundle, asked: str | None) -> Target:
    manifest = staged.manifest
    if manifest.engine not in STAGED.values():
        raise UsageError(
            f"{staged.path} is a finished bundle for {manifest.target}: give a checkpoint, or what --stage onnx wrote"
        )
    if asked not in (None, manifest.target):
        raise UsageError(f"{staged.path} was staged for {manifest.target}, not {asked}: leave --target out")
    return find_target(manifest.target)


def _manifest(staged: Manifest, target: Target) -> Manifest:
    cache = staged.kv_cache
    per_token = cache.bytes_per_token // BYTES[cache.dtype] * BYTES[target.kv_dtype]
    stated = staged.provenance
    # What is not rounded takes the type of the caches: float32 while it is staged, the engine's own after that.
    quantization = stated.quantization
    for part in ("embedding", "head"):
        quantization = quantization.replace(f"{part} {cache.dtype}", f"{part} {target.kv_dtype}")
    return replace(
        staged,
        engine=target.engine,
        kv_cache=KvCache(dtype=target.kv_dtype, bytes_per_token=per_token),
        provenance=replace(stated, quantization=quantization, tools={**stated.tools, **tool_versions(target.engine)}),
        measured=None if staged.measured is None else _as_simulated(staged.measured),
    )


def _as_simulated(measured: Measured) -> Measured:
    """What the staged graph gave on a CPU stands for an engine that may not run here."""
    return replace(measured, of="simulation")


def _text(staged: Bundle) -> TextAssets | None:
    tokenizer, template = staged.find(text_codec.FILE_NAME), staged.find(chat.FILE_NAME)
    if tokenizer is None:
        return None
    return TextAssets(
        tokenizer_json=tokenizer.read_bytes(),
        chat_template=None if template is None else template.read_text(encoding="utf-8"),
        bos_token=None,  # said in tokens already
        eos_token=None,
        tokens=staged.manifest.tokens,
        sampling=staged.manifest.sampling,
    )
