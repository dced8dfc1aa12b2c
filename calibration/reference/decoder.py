"""One decoder layer in numpy, float32, with its projections as a parameter; knows no checkpoint and no graph.

Calibration needs the activations of one layer at a time, so this is the forward pass of a layer over whole samples,
without a cache. Shapes in comments: S samples, T tokens, H hidden, h heads, g KV heads,
d head_dim, I intermediate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts, multiply

Float32 = NDArray[np.float32]
# A layer's tensors under their Hugging Face names less the prefix: "self_attn.q_proj.weight".
Layer = Mapping[str, Float32]
# (projection group, its input [tokens, in_features]) -> its output [tokens, out_features], biases included.
Linear = Callable[[str, Float32], Float32]
# Projection groups: the projections of a layer that read one input, in the order of a forward pass.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
# Groups of one projection whose outputs are added to the residual stream.
ADDED = ("o", "down")
# The norm before a group. The LM head is a group of its own, outside of the layers.
NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
LM_HEAD_GROUP = "lm_head"
# Queries of a sample that attention computes at a time.
QUERIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """What a layer's forward pass needs besides weights. cos, sin: float32 [positions, head_dim / 2]."""

    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    cos: Float32
    sin: Float32

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of q, k and v."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


def forward(x: Float32, layer: Layer, shape: DecoderShape, window: int | None, linear: Linear) -> Float32:
    """The layer's output for hidden states x [S, T, H]; `linear` computes each of GROUPS."""
    samples, length, hidden = x.shape
    flat, blocks = x.reshape(-1, hidden), _blocks(length, window)

    def normed(stream: Float32, name: str) -> Float32:
        weight, eps = layer[f"{name}.weight"], shape.rms_norm_eps
        return _by_sample(stream, length, hidden, lambda part: rms_norm(part, weight, eps))

    qkv = linear("qkv", normed(flat, "input_layernorm"))
    heads = _by_sample(qkv, length, shape.widths[0], lambda part: attention(part, layer, shape, blocks))
    del qkv
    middle = flat + linear("o", heads)
    del heads
    gate_up = linear("gate_up", normed(middle, "post_attention_layernorm"))
    activated = _by_sample(gate_up, length, gate_up.shape[1] // 2, swiglu)
    del gate_up
    middle += linear("down", activated)
    return middle.reshape(samples, length, hidden)


def _by_sample(x: Float32, length: int, width: int, compute: Callable[[Float32], Float32]) -> Float32:
    """`compute` of each sample of x [S T, ...], side by side: [S T, width]."""
    y = np.empty((len(x), width), np.float32)

    def write(part: slice) -> None:
        y[part] = compute(x[part])

    in_parts(len(x), length, write)
    return y


def linear_of(layer: Layer) -> Linear:
    """The projections in float32."""

    def linear(group: str, x: Float32) -> Float32:
        weights = [(layer[f"{name}.weight"], layer.get(f"{name}.bias")) for name in GROUPS[group]]
        return project(x, sum(len(weight) for weight, _ in weights), weights)

    return linear


def project(x: Float32, width: int, weights: Iterable[tuple[Float32, Float32 | None]]) -> Float32:
    """x [tokens, K] by weights [N, K], with biases [N] or None: the products side by side, [tokens, width]."""
    y, start = np.empty((len(x), width), np.float32), 0
    for weight, bias in weights:
        part = y[:, start : start + len(weight)]
        multiply(x, weight.T, out=part)
        if bias is not None:
            part += bias
        start += len(weight)
    return y


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """Over the last axis; source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467)."""
    mean_square = np.einsum("...h,...h->...", x, x) / np.float32(x.shape[-1])
    y: Float32 = x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))[..., None] * weight
    return y


def attention(qkv: Float32, layer: Layer, shape: DecoderShape, blocks: "Sequence[_Block]") -> Float32:
    """Causal grouped-query attention of one sample: [T, (h + 2g) d] -> [T, h d]. blocks: those of T queries."""
    length, group, d = len(qkv), shape.heads // shape.kv_heads, shape.head_dim
    q, k, v = (
        np.ascontiguousarray(part.reshape(length, -1, d).transpose(1, 0, 2))  # [h or g, T, d]
        for part in np.split(qkv, np.cumsum(shape.widths)[:2], axis=1)
    )
    if "self_attn.q_norm.weight" in layer:
        q = rms_norm(q, layer["self_attn.q_norm.weight"], shape.rms_norm_eps)
        k = rms_norm(k, layer["self_attn.k_norm.weight"], shape.rms_norm_eps)
    q, k = apply_rope(q, shape) * np.float32(d**-0.5), apply_rope(k, shape)
    q = q.reshape(shape.kv_heads, group, length, d)
    y = np.empty((length, shape.kv_heads, group, d), np.float32)
    for head in range(shape.kv_heads):
        for block in blocks:
            scores = q[head, :, block.queries] @ k[head, block.keys].T  # [h / g, queries, keys]
            scores[..., -block.mask.shape[1] :] += block.mask
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            heads = scores @ v[head, block.keys]
            heads /= scores.sum(axis=-1, keepdims=True)
            y[block.queries, head] = heads.transpose(1, 0, 2)
    return y.reshape(length, -1)


def apply_rope(x: Float32, shape: DecoderShape) -> Float32:
    """Rotary position embedding of [h, T, d] at positions 0 .. T - 1, channel i paired with i + d / 2 as in Llama.

    Source: Su et al., RoFormer (arXiv 2104.09864).
    """
    half, length = shape.head_dim // 2, x.shape[1]
    cos, sin = shape.cos[:length], shape.sin[:length]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def swiglu(gate_up: Float32) -> Float32:
    """[tokens, 2 I] -> silu(gate) * up, [tokens, I]."""
    gate, up = np.split(gate_up, 2, axis=1)
    with np.errstate(over="ignore"):
        y: Float32 = np.exp(-gate)
    y += 1
    np.divide(gate, y, out=y)
    y *= up
    return y


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Some queries and the keys that they may attend to.

    mask: 0 or minus infinity, [queries, the last keys]; all attend to the keys before them.
    """

    queries: slice
    keys: slice
    mask: Float32


def _blocks(length: int, window: int | None) -> list[_Block]:
    """Of a sample's queries; earlier ones have fewer keys, so less is computed than of all at once."""
    blocks = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        first = 0 if window is None else max(0, start - window + 1)
        distance = np.arange(start, stop)[:, None] - np.arange(start if window is None else first, stop)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        mask = np.where(seen, np.float32(0), np.float32(-np.inf))
        blocks.append(_Block(queries=slice(start, stop), keys=slice(first, stop), mask=mask))
    return blocks
