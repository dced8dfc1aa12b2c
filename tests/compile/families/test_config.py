"""read_config means what transformers means; its own configs, built in memory, are the reference."""

from typing import Any

import pytest
import transformers

from megrez.compile.families.config import ModelConfig, read_config
from megrez.compile.families.registry import families
from megrez.runtime.errors import CheckpointError

ARCHITECTURES = {family.model_type: family.architecture for family in families()}
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16}
MEGREZ = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 120005,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 7168,
    "max_position_embeddings": 32768,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 32,
    "num_key_value_heads": 10,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 122880,
}


def assert_agrees(ours: ModelConfig, theirs: Any) -> None:
    for name in (*SHAPE, "tie_word_embeddings", "model_type"):
        assert getattr(ours, name) == getattr(theirs, name), name
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim
    assert ours.rope == {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
    assert ours.sliding_windows == windows(theirs)


def windows(theirs: Any) -> tuple[int | None, ...]:
    # Mistral's mask is one for all layers; Qwen's attention asks its own layer type.
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 32, "tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": None}),
        ("llama", {"rope_theta": 5e6}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
        ("mistral", {}),
        ("mistral", {"sliding_window": None, "head_dim": 32}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"rope_scaling": YARN}),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}),
        ("qwen3", {}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
        ),
    ],
)
def test_agrees_with_transformers(family: str, fields: dict[str, Any]) -> None:
    raw = {**SHAPE, **fields, "architectures": [ARCHITECTURES[family]], "model_type": family}
    theirs = transformers.AutoConfig.for_model(family, **{**SHAPE, **fields})
    assert_agrees(read_config(raw), theirs)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_reads_what_transformers_5_writes(family: str) -> None:
    theirs = transformers.AutoConfig.for_model(family, **SHAPE, rope_parameters={**YARN, "rope_theta": 1e6})
    assert_agrees(read_config({**theirs.to_dict(), "architectures": [ARCHITECTURES[family]]}), theirs)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("biases", [False, True])
def test_biases_and_norms_are_the_modules_own(family: str, biases: bool) -> None:
    fields = {"attention_bias": biases, "mlp_bias": biases}
    theirs = transformers.AutoConfig.for_model(family, **SHAPE, **fields)
    names = {name for name, _ in transformers.AutoModelForCausalLM.from_config(theirs).named_parameters()}
    ours = read_config({**SHAPE, **fields, "architectures": [ARCHITECTURES[family]]})
    layer = "model.layers.0."
    assert ours.qkv_bias == (f"{layer}self_attn.q_proj.bias" in names)
    assert ours.output_bias == (f"{layer}self_attn.o_proj.bias" in names)
    assert ours.mlp_bias == (f"{layer}mlp.up_proj.bias" in names)
    assert ours.qk_norm == (f"{layer}self_attn.q_norm.weight" in names)


def test_megrez() -> None:
    config = read_config(MEGREZ)
    assert (config.head_dim, config.num_key_value_heads, config.vocab_size) == (64, 10, 122880)
    assert config.rope == {"rope_type": "default", "rope_theta": 5000000.0}
    assert config.sliding_windows == (None,) * 32
    assert not (config.tie_word_embeddings or config.qkv_bias or config.output_bias or config.mlp_bias)


def refusal(**changes: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_config({**MEGREZ, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["LLaMAForCausalLM"]}, "'LLaMAForCausalLM' is not supported (did you mean Llama"),
        ({"architectures": ["GPT2LMHeadModel"]}, f"is not supported: {', '.join(ARCHITECTURES.values())} are"),
        ({"architectures": None, "model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"model_type": "qwen2"}, "model_type 'llama', not 'qwen2'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "method 'awq'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 63}, "head_dim is 63: rotary embedding needs an even one"),
        ({"num_key_value_heads": 7}, "num_attention_heads (40) is not a multiple of num_key_value_heads (7)"),
        ({"head_dim": None, "num_attention_heads": 30}, "hidden_size (2560) is not a multiple"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "122880"}, "vocab_size is '122880', not a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"architectures": [["x"]]}, "is not supported"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "rope type ['linear'] is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported: default, linear"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "needs a positive factor, found None"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "one rotary embedding for all layers"),
    ],
)
def test_refuses(changes: dict[str, Any], told: str) -> None:
    assert told in refusal(**changes)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layer_types": ["full_attention"]}, "for 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "give no window"),
        ({"layer_types": 5}, "for 4 layers, found 5"),
        ({"use_sliding_window": True, "max_window_layers": None}, "max_window_layers is None, not an integer"),
        ({"use_sliding_window": True, "sliding_window": -1, "max_window_layers": 0}, "sliding_window is -1"),
    ],
)
def test_refuses_windows_that_contradict(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_config({**SHAPE, "architectures": ["Qwen2ForCausalLM"], **fields})


def test_reports_every_fault_at_once() -> None:
    message = refusal(architectures=["Gemma2ForCausalLM"], hidden_act="gelu", vocab_size=None, rope_theta=-1)
    assert all(told in message for told in ("Gemma2ForCausalLM", "gelu", "vocab_size is missing", "rope_theta"))
