"""`megrez inspect`: what a bundle says of itself."""

import click

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.commands.options import bundle_argument, verify_option


@click.command("inspect")
@bundle_argument
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is.")
@verify_option
def inspect_command(bundle: str, as_json: bool, verify: bool) -> None:
    """Show what a bundle is, what it needs and where it came from."""
    opened = open_bundle(bundle, verify=verify)
    click.echo(opened.manifest.to_json() if as_json else _describe(opened, verified=verify), nl=not as_json)


def _describe(bundle: Bundle, *, verified: bool) -> str:
    m = bundle.manifest
    a, s, p = m.architecture, m.sampling, m.provenance
    cache_mib = m.kv_cache.bytes_per_token * m.context_length / 2**20
    rows = {
        "target": f"{m.target} (engine {m.engine})",
        "model": f"{a.model_type}: {a.num_hidden_layers} layers, hidden {a.hidden_size}, "
        f"{a.num_attention_heads} heads over {a.num_key_value_heads} KV heads of {a.head_dim}, "
        f"vocabulary {a.vocab_size}",
        "context": f"{m.context_length} tokens, KV cache {m.kv_cache.dtype}, {cache_mib:.1f} MiB a slot",
        "stop ids": ", ".join(map(str, m.tokens.stop)) or "none",
        "sampling": f"temperature {s.temperature:g}, top-k {s.top_k}, top-p {s.top_p:g}, "
        f"repetition penalty {s.repetition_penalty:g}",
        "source": f"{p.source}, weights: {p.weights}, quantization: {p.quantization}",
        "tools": ", ".join(f"{name} {version}" for name, version in p.tools.items()) or "none",
        "size": f"{bundle.size / 2**20:.1f} MiB, {'hashes verified' if verified else 'sizes checked'}",
    }
    files = [f"  {file.size:>14,}  {file.path}" for file in m.files]
    return "\n".join([f"{name:<10}{value}" for name, value in rows.items()] + ["files", *files])
