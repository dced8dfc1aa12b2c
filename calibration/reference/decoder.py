"""One decoder layer in numpy, float32, with its projections as a parameter; knows no checkpoint and no graph.

Calibration needs the activations of one layer at a time, so this is the forward pass of a layer over whole samples,
without a cache. Shapes in comments: S samples, T tokens, H hidden, h heads, g KV heads,
d head_dim, I intermediate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
# The norm before a group. The LM head is a group of its own, outside of the layers.
NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
LM_HEAD_GROUP = "lm_head"


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
    flat = x.reshape(-1, hidden)
    qkv = linear("qkv", rms_norm(flat, layer["input_layernorm.weight"], shape.rms_norm_eps))
    heads = np.empty((len(flat), shape.heads * shape.head_dim), np.float32)
    for start in range(0, len(flat), length):
        part = slice(start, start + length)
        heads[part] = attention(qkv[part], layer, shape, window)
    del qkv
    middle = flat + linear("o", heads)
    del heads
    gate_up = linear("gate_up", rms_norm(middle, layer["post_attention_layernorm.weight"], shape.rms_norm_eps))
    middle += linear("down", swiglu(gate_up))
    return middle.reshape(samples, length, hidden)


def linear_of(layer: Layer) -> Linear:
    """The projections in float32."""

    def linear(group: str, x: Float32) -> Float32:
        return np.concatenate([project(x, layer, name) for name in GROUPS[group]], axis=1)

    return linear


def project(x: Float32, layer: Layer, name: str) -> Float32:
    """x [tokens, in_features] by the projection `name`, its bias added where it has one."""
    y: Float32 = x @ layer[f"{name}.weight"].T
    bias = layer.get(f"{name}.bias")
    return y if bias is None else y + bias


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """Over the last axis; source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467)."""
    mean_square = np.einsum("...h,...h->...", x, x) / np.float32(x.shape[-1])
    y: Float32 = x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))[..., None] * weight
    return y


def attention(qkv: Float32, layer: Layer, shape: DecoderShape, window: int | None) -> Float32:
    """Causal grouped-query attention of one sample: [T, (h + 2g) d] -> [T, h d]."""
    length, group = len(qkv), shape.heads // shape.kv_heads
    q, k, v = (
        np.ascontiguousarray(part.reshape(length, -1, shape.head_dim).transpose(1, 0, 2))  # [h or g, T, d]
        for part in np.split(qkv, np.cumsum(shape.widths)[:2], axis=1)
    )
    if "self_attn.q_norm.weight" in layer:
        q = rms_norm(q, layer["self_attn.q_norm.weight"], shape.rms_norm_eps)
        k = rms_norm(k, layer["self_attn.k_norm.weight"], shape.rms_norm_eps)
    q, k = apply_rope(q, shape) * np.float32(shape.head_dim**-0.5), apply_rope(k, shape)
    masked = _masked(length, window)
    y = np.empty((length, shape.heads, shape.head_dim), np.float32)
    for head in range(shape.heads):
        scores = q[head] @ k[head // group].T
        scores[masked] = -np.inf
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        y[:, head] = scores @ v[head // group]
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
    """[tokens, 2 I] -> silu(gate) * up, [tokens, I]; in parts, so that temporaries stay small."""
    gate, up = np.split(gate_up, 2, axis=1)
    y = np.empty(up.shape, np.float32)
    for start in range(0, len(y), 512):
        part = slice(start, start + 512)
        with np.errstate(over="ignore"):
            y[part] = gate[part] / (1 + np.exp(-gate[part])) * up[part]
    return y


def _masked(length: int, window: int | None) -> NDArray[np.bool_]:
    """bool [T, T]: which keys a query must not attend to."""
    position = np.arange(length)
    distance = position[:, None] - position[None]
    return distance < 0 if window is None else (distance < 0) | (distance >= window)
