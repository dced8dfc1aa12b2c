"""The decoder that is traced: Llama with grouped-query attention and a KV cache updated in place.

Parameters have their Hugging Face names and no values: tracing runs on fake tensors. A projection's weight is
[in_features, out_features], the layout of ONNX MatMul: the checkpoint's matrix transposed.
Shapes in comments: B batch, T new tokens, S cache capacity, H hidden, h heads, g KV heads, d head_dim.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from megrez.compile.families.config import ModelConfig

ONNX_OPSET = 24


class Projection(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, g, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = h, g, d
        self.q_proj = Projection(config.hidden_size, h * d, bias=config.qkv_bias)
        self.k_proj = Projection(config.hidden_size, g * d, bias=config.qkv_bias)
        self.v_proj = Projection(config.hidden_size, g * d, bias=config.qkv_bias)
        self.o_proj = Projection(h * d, config.hidden_size, bias=config.output_bias)
        self.q_norm = nn.RMSNorm(d, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(d, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor], write_indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The heads' outputs [B, T, h * d], for o_proj; and the caches with the new tokens written."""
        q = self.q_norm(self.split_heads(self.q_proj(x), self.heads)).transpose(1, 2)  # [B, h, T, d]
        k = self.k_norm(self.split_heads(self.k_proj(x), self.kv_heads)).transpose(1, 2)  # [B, g, T, d]
        v = self.split_heads(self.v_proj(x), self.kv_heads).transpose(1, 2)
        q = torch.onnx.ops.rotary_embedding(q, cos, sin)
        k = torch.onnx.ops.rotary_embedding(k, cos, sin)
        keys, values = write_cache(past[0], k, write_indices), write_cache(past[1], v, write_indices)
        y = torch.onnx.ops.symbolic(
            "Attention", (q, keys, values, mask), dtype=q.dtype, shape=q.shape, version=ONNX_OPSET
        )
        return y.transpose(1, 2).flatten(2), keys, values

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.head_dim)


def write_cache(cache: Tensor, new: Tensor, write_indices: Tensor) -> Tensor:
    """cache [B, g, S, d] with `new` [B, g, T, d] written at write_indices[b]; ONNX runtimes do it in place."""
    written: Tensor = torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, write_indices),
        attrs={"axis": -2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=ONNX_OPSET,
    )
    return written


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Projection(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Projection(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        y: Tensor = self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor],
        write_indices: Tensor,
        logits_index: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """With `logits_index`, the output is [N, H] at these of the B * T positions; the caches get all of them."""
        y, keys, values = self.self_attn(self.input_layernorm(x), cos, sin, mask, past, write_indices)
        if logits_index is not None:
            x, y = embedding(logits_index, x.flatten(0, 1)), embedding(logits_index, y.flatten(0, 1))
        x = x + self.self_attn.o_proj(y)
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.windows = config.sliding_windows
        self.rotary_cos = nn.Buffer(torch.empty(context, config.head_dim // 2))
        self.rotary_sin = nn.Buffer(torch.empty(context, config.head_dim // 2))

    def forward(
        self,
        input_ids: Tensor,
        write_indices: Tensor,
        logits_index: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        device, capacity = input_ids.device, past_key_values[0][0].shape[2]
        position = write_indices.unsqueeze(1) + torch.arange(input_ids.shape[1], device=device)  # [B, T]
        cached = torch.arange(capacity, device=device)
        query = position.unsqueeze(1).unsqueeze(3)  # [B, 1, T, 1]
        masks = {window: visible(cached, query, window) for window in dict.fromkeys(self.windows)}
        cos, sin = embedding(position, self.rotary_cos), embedding(position, self.rotary_sin)  # [B, T, d / 2]
        x, present = self.embed_tokens(input_ids), []
        for i, (layer, window, past) in enumerate(zip(self.layers, self.windows, past_key_values, strict=True)):
            selected = logits_index if i == len(self.layers) - 1 else None
            x, keys, values = layer(x, cos, sin, masks[window], past, write_indices, selected)
            present.append((keys, values))
        return self.norm(x), present  # [N, H]


def visible(cached: Tensor, query: Tensor, window: int | None) -> Tensor:
    """bool [B, 1, T, S]: which cached positions [S] a query at a position [B, 1, T, 1] may attend to."""
    causal = cached <= query
    return causal if window is None else causal & (cached > query - window)


class CausalLm(nn.Module):
    """input_ids [B, T], write_indices [B], logits_index [N] into the B * T positions -> logits [N, vocab_size]."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.model = Decoder(config, context)
        untied = not config.tie_word_embeddings
        self.lm_head = Projection(config.hidden_size, config.vocab_size, bias=False) if untied else None

    def forward(
        self,
        input_ids: Tensor,
        write_indices: Tensor,
        logits_index: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x, present = self.model(input_ids, write_indices, logits_index, past_key_values)
        head = self.model.embed_tokens.weight.t() if self.lm_head is None else self.lm_head.weight
        return x @ head, present
