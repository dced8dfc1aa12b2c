"""Tables of the rotary position embedding, scaled by transformers' own functions; knows no graph."""

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from megrez.compile.families.config import ModelConfig


def rotary_tables(config: ModelConfig, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of positions 0 .. context - 1: float32 [context, head_dim / 2] each.

    Frequencies and angles are float32 as in transformers: checkpoints were trained so, and at position 4000 the
    difference is 2e-4 radians. YaRN's attention factor is multiplied in, as in transformers.
    Source: transformers' ROPE_INIT_FUNCTIONS (linear, llama3, yarn) and Su et al., RoFormer (default).
    """
    frequencies, factor = _inverse_frequencies(config)
    angles = np.outer(np.arange(context, dtype=np.float32), frequencies)
    return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)


def _inverse_frequencies(config: ModelConfig) -> tuple[NDArray[np.float32], float]:
    if config.rope["rope_type"] == "default":
        import torch

        # numpy's powers differ from torch's in the last digit, which is 1e-4 radians at position 4000.
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return (1.0 / config.rope["rope_theta"] ** exponents).numpy(), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # The functions read these fields of a PretrainedConfig and no others.
    like_transformers = SimpleNamespace(
        rope_parameters=config.rope,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        standardize_rope_params=lambda: None,
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope["rope_type"]](like_transformers, "cpu")
    return frequencies.numpy(), float(factor)
