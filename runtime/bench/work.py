"""What steps of a decoder compute and read, by the model's shape; knows no clock and no device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megrez.runtime.bench.bandwidth import weight_bytes
from megrez.runtime.bench.peaks import Peaks
from megrez.runtime.manifest import Manifest


@dataclass(slots=True)
class Work:
    """Sums over steps. tokens: new ones. cached_tokens: those that a sequence holds after its step. pairs: of a new
    token and a token that it attends to. logits: tokens whose logits were computed.
    """

    steps: int = 0
    seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    pairs: int = 0
    logits: int = 0


def flops(manifest: Manifest, work: Work) -> float:
    """Multiplications and additions of the matrix products and of attention; sliding windows count as full ones."""
    shape = manifest.architecture
    attention = 2 * shape.num_attention_heads * shape.head_dim * work.pairs
    head = shape.hidden_size * shape.vocab_size * work.logits
    return 2.0 * (shape.num_hidden_layers * (shape.layer_weights * work.tokens + attention) + head)


def bytes_read(manifest: Manifest, work: Work) -> float:
    """Weights, once per step, and the KV cache of every sequence, once per step."""
    return float(work.steps * weight_bytes(manifest) + work.cached_tokens * manifest.kv_cache.bytes_per_token)


def describe_work(manifest: Manifest, phases: Mapping[str, Work], peaks: Peaks) -> dict[str, Any]:
    """By phase, for JSON: FLOP/s, bytes read per second, FLOP per byte, and the shares of what was measured here."""
    found: dict[str, Any] = {}
    for name, work in phases.items():
        if not (work.steps and work.seconds):
            found[name] = None
            continue
        done, read = flops(manifest, work), bytes_read(manifest, work)
        found[name] = {
            "flops_per_s": done / work.seconds,
            "read_bytes_per_s": read / work.seconds,
            "flops_per_byte": done / read,
            "compute_share": _share(done / work.seconds, peaks.flops_per_s),
            "bandwidth_share": _share(read / work.seconds, peaks.read_bytes_per_s),
        }
    return found


def _share(value: float, of: float | None) -> float | None:
    return value / of if of else None
