"""Tiny random Hugging Face checkpoints on disk, written by transformers itself; knows nothing of the product."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

BOS, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
MERGES = ("t h", "th e", "i n", "a n", "an d", "Ġ the", "Ġ and", "Ġ in", "e r", "o n", "Ġ a", "l l", "ll o")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_saved: dict[str, Mapping[str, bytes]] = {}


def make_checkpoint(
    folder: Path,
    *,
    family: str = "llama",
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    biases: bool = False,
    sliding_window: int | None = None,
    sharded: bool = False,
    dtype: str = "float32",
    tokenizer: bool = True,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 96,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 32,
    intermediate: int = 160,
    vocab: int = 320,
    positions: int = 512,
) -> Path:
    """Write a seeded random model to `folder` and return it.

    heads * head_dim differs from hidden on purpose. `rope` is transformers 5's rope_parameters; family: a model_type
    of transformers. `biases` holds for the biases that its config gives a choice of; with `sliding_window`, layer 0 of
    a family that has windows by layer (qwen2, qwen3) still sees all.
    """
    shape = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})},
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 259,
    }
    config = transformers.AutoConfig.for_model(family, **shape, **_family_fields(family, biases, sliding_window))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _model_files(config, seed, dtype, sharded).items():
        (folder / name).write_bytes(data)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def _model_files(config: Any, seed: int, dtype: str, sharded: bool) -> Mapping[str, bytes]:
    """By name, what transformers saves: kept, since that takes 20 ms and hundreds of tests have their own folder."""
    key = repr((config.to_json_string(), seed, dtype, sharded))
    if key not in _saved:
        model = transformers.AutoModelForCausalLM.from_config(config)
        _randomise(model, seed)
        model = model.to(getattr(torch, dtype))
        model.config.dtype = dtype
        model.generation_config = transformers.GenerationConfig(eos_token_id=258, pad_token_id=259)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
            _saved[key] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return _saved[key]


def _family_fields(family: str, biases: bool, sliding_window: int | None) -> dict[str, Any]:
    known = transformers.AutoConfig.for_model(family).to_dict()
    fields: dict[str, Any] = {name: biases for name in known if name.endswith("_bias")}
    if "use_sliding_window" not in known:
        return {**fields, "sliding_window": sliding_window} if "sliding_window" in known else fields
    if sliding_window is not None:
        fields |= {"use_sliding_window": True, "sliding_window": sliding_window, "max_window_layers": 1}
    return fields


def _randomise(model: torch.nn.Module, seed: int) -> None:
    # transformers starts biases at 0 and norms at 1, where a forgotten one would not show.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.1 * values)
            else:
                weight.copy_(values * (0.1 if weight.ndim == 1 else weight.shape[-1] ** -0.5))


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 256 bytes, a few merges and four special tokens (256-259), with a ChatML template."""
    byte_alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    specials = [BOS, TURN_START, TURN_END, PAD]
    merged = [merge.replace(" ", "") for merge in MERGES]
    vocab = {token: i for i, token in enumerate([*byte_alphabet, *specials, *merged])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [_pair(merge) for merge in MERGES]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_bos_token": False,
                "bos_token": None,
                "eos_token": TURN_END,
                "pad_token": PAD,
                "chat_template": CHAT_TEMPLATE,
            },
            indent=2,
        ),
        encoding="utf-8",
    )


def _pair(merge: str) -> tuple[str, str]:
    first, second = merge.split(" ")
    return first, second
