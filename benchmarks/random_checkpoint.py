"""Random weights in Megrez-3B's shape or of a config.json as a Hugging Face folder; such a folder as a float16 GGUF.

The GGUF's architecture is "llama" or "qwen2".
"""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors

SHAPE = {
    "hidden_size": 2560,
    "intermediate_size": 7168,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "head_dim": 64,
    "vocab_size": 122880,
    "max_position_embeddings": 32768,
}
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_hugging_face(folder: Path, layers: int) -> None:
    """Seeded float16 weights of deviation 0.02, with a tokenizer of bytes: only its presence matters."""
    folder.mkdir(parents=True)
    hidden, ffn, vocab = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    q, kv = (SHAPE[f"num_{kind}_heads"] * SHAPE["head_dim"] for kind in ("attention", "key_value"))
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,), "lm_head": (vocab, hidden)}
    for layer in range(layers):
        in_layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in in_layer.items()}
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": _random(rng, shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "num_hidden_layers": layers,
        "eos_token_id": 120005,
        "pad_token_id": 120002,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-5,
        **SHAPE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_tokenizer(folder)


def write_of_config(folder: Path, config: Path) -> None:
    """Seeded float16 weights of the shape of a config.json, with a tokenizer of bytes."""
    folder.mkdir(parents=True)
    shutil.copy(config, folder / "config.json")
    checkpoint = open_checkpoint(str(folder), dummy_weights=True)
    names = expected_tensors(checkpoint.config)
    weights = {name: checkpoint.read(name).astype(np.float16) for name in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes: only its presence matters."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={piece: n for n, piece in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": SHAPE["max_position_embeddings"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float16]:
    if len(shape) == 1:
        return np.ones(shape, np.float16)
    weight = rng.standard_normal(shape, np.float32)
    weight *= 0.02
    return weight.astype(np.float16)


def write_gguf(folder: Path, file: Path) -> None:
    """The weights of `folder`, a Llama in one file, in llama.cpp's names and row order, with its BPE tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, config["model_type"])
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # llama's rotary pairs are neighbours in a GGUF; Hugging Face's, and qwen2's in both, are half a head apart.
    paired = {"q_proj": heads, "k_proj": config["num_key_value_heads"]} if config["model_type"] == "llama" else {}
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            weight = tensors.get_tensor(name)
            projection = name.split(".")[-2]
            if projection in paired:
                halves = weight.reshape(paired[projection], 2, -1, weight.shape[1])
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
            writer.add_tensor(_gguf_name(name), weight.astype(np.float32) if weight.ndim == 1 else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """Ids without a token get a name of their own; there is one merge at least, since readers want some."""
    pieces = {number: piece for piece, number in tokenizer["model"]["vocab"].items()}
    special = {one["id"]: one["content"] for one in tokenizer.get("added_tokens") or ()}
    merges = [one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]] or ["a b"]
    tokens, types = [], []
    for number in range(config["vocab_size"]):
        tokens.append(special.get(number) or pieces.get(number) or f"<unused_{number}>")
        kind = gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL
        types.append(kind if number in pieces or number in special else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])


def _gguf_name(name: str) -> str:
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.{kind}"
