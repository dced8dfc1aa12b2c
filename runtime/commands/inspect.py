"""`megrez inspect`: what a bundle contains, from its manifest."""

from pathlib import Path

import click

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.commands.options import bundle_argument, json_file_option, json_option, show, verify_option
from megrez.runtime.errors import UsageError
from megrez.runtime.fusion import FUSION_FILE, Fusion
from megrez.runtime.manifest import CacheFidelity, Calibration, Device, Manifest, Measured, Quantization
from megrez.runtime.memory import working_bytes


@click.command("inspect")
@bundle_argument
@click.option("--fusion", is_flag=True, help="Show the kernels of a TensorRT engine, as audited when it was built.")
@json_option
@json_file_option
@verify_option
def inspect_command(bundle: str, fusion: bool, as_json: bool, json_file: Path | None, verify: bool) -> None:
    """Show what a bundle contains, what it needs and how it was made. JSON output is its manifest."""
    opened = open_bundle(bundle, verify=verify)
    if fusion:
        found = _read_fusion(opened)
        text, table = found.to_json(), _tabulate(found)
    else:
        text, table = opened.manifest.to_json(), _describe(opened, verified=verify)
    show(table, text, as_json=as_json, json_file=json_file)


def _read_fusion(bundle: Bundle) -> Fusion:
    path = bundle.find(FUSION_FILE)
    if path is None:
        raise UsageError(
            f"{bundle.path} is a bundle for {bundle.manifest.target}, which has no audited engine: leave --fusion out"
        )
    return Fusion.from_json(path.read_text(encoding="utf-8"))


def _tabulate(fusion: Fusion) -> str:
    phases = (fusion.decode, fusion.prefill)
    rows = [
        ("", "decode", "prefill"),
        ("attention kernels", *(_counts(phase.attention_kernels) for phase in phases)),
        ("projections multiply", *(_counts(phase.gemm_types) for phase in phases)),
        ("kernels that copy a cache", *(str(phase.cache_copies) for phase in phases)),
        ("unfused layers", *(", ".join(phase.unfused) or "none" for phase in phases)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def _describe(bundle: Bundle, *, verified: bool) -> str:
    m = bundle.manifest
    a, s, p = m.architecture, m.sampling, m.provenance
    rows = {
        "target": f"{m.target} (engine {m.engine})",
        "model": f"{a.model_type}: {a.num_hidden_layers} layers, hidden {a.hidden_size}, "
        f"{a.num_attention_heads} heads over {a.num_key_value_heads} KV heads of {a.head_dim}, "
        f"vocabulary {a.vocab_size}",
        "context": f"{m.context_length} tokens",
        "KV cache": _cache(m),
        "stop ids": ", ".join(map(str, m.tokens.stop)) or "none",
        "sampling": f"temperature {s.temperature:g}, top-k {s.top_k}, top-p {s.top_p:g}, min-p {s.min_p:g}, "
        f"repetition penalty {s.repetition_penalty:g}",
        "device": _device(m.device),
        "fidelity": _fidelity(m.measured),
        **_cache_fidelity(m.kv_cache.fidelity),
        "source": f"{p.source}, weights: {p.weights}",
        "quantised": quantization_line(p.quantization, p.calibration),
        "tools": ", ".join(f"{name} {version}" for name, version in p.tools.items()) or "none",
        "size": f"{bundle.size / 2**20:.1f} MiB, {'hashes verified' if verified else 'sizes checked'}",
    }
    files = [f"  {file.size:>14,}  {file.path}" for file in m.files]
    return "\n".join([f"{name:<10}{value}" for name, value in rows.items()] + ["files", *files])


def _cache(manifest: Manifest) -> str:
    """Format and size; the memory at full context is that of one slot, and of the files, which are mostly weights."""
    cache, context = manifest.kv_cache, manifest.context_length
    slot = cache.bytes_per_token * context
    files = sum(file.size for file in manifest.files)
    notes = [f"scales {cache.scales}"] if cache.scales else []
    notes += [f"keys {cache.keys}"] if cache.keys else []
    found = (
        f"{', '.join([cache.dtype, *notes])}; {cache.bytes_per_token:,} bytes a token, "
        f"{slot / 2**20:.1f} MiB a slot at full context, {(slot + files) / 2**20:.1f} MiB with the files"
    )
    if manifest.engine != "ort":
        return found
    shape = manifest.architecture
    all_of_it = slot + files + working_bytes(shape.hidden_size, shape.intermediate_size)
    return f"{found}, about {all_of_it / 2**20:.0f} MiB with the process"


def _cache_fidelity(measured: tuple[CacheFidelity, ...]) -> dict[str, str]:
    found = [
        f"KL {one.fidelity.kl_mean:.5f}, top-1 {one.fidelity.top1_agreement:.3f} in {one.context} tokens"
        for one in measured
    ]
    where = f" of {measured[0].text}" if measured else ""
    return {"its loss": f"{'; '.join(found)}{where}, against a float32 cache"} if found else {}


def _device(device: Device | None) -> str:
    if device is None:
        return "any"
    where = ", ".join(device.capabilities)
    return (
        f"{where}, {device.library} {device.version}, {device.memory_bytes / 2**20:.1f} MiB and the KV cache; "
        f"up to {device.slots} sequences, {device.chunk} tokens a step"
    )


def quantization_line(quantization: Quantization | None, calibration: Calibration | None) -> str:
    """The quantisation that a manifest states, on one line."""
    if quantization is None:
        return "no"
    q, unquantised = quantization, "not quantised"
    parts = [f"projections {q.projections}"]
    parts += [] if q.sensitive == q.projections else [f"the most sensitive {q.sensitive or unquantised}"]
    parts += [] if q.inputs is None else [f"their inputs {q.inputs} per tensor"]
    parts += [] if q.activations is None else [f"all activations {q.activations}"]
    parts += [f"embedding {q.embedding or unquantised}", f"lm_head {q.lm_head or unquantised}"]
    parts += ["the checkpoint's own blocks kept"] if q.keeps_blocks else []
    parts += ["rotated"] if q.rotated else []
    return f"{', '.join(parts)}; {q.algorithm}{_text(calibration)}"


def _text(calibration: Calibration | None) -> str:
    if calibration is None:
        return ""
    return f" on {calibration.samples} x {calibration.tokens} tokens of {calibration.source}"


def _fidelity(measured: Measured | None) -> str:
    if measured is None:
        return "not measured"
    f = measured.fidelity
    return (
        f"KL {f.kl_mean:.4f}, top-1 {f.top1_agreement:.3f}, perplexity {f.perplexity:.3f} "
        f"(float32 {f.reference_perplexity:.3f}) on {f.tokens} tokens of {measured.text}, by {measured.of}"
    )
