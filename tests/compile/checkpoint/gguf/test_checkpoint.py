"""A .gguf file gives the checkpoint it was made of: exactly from floats, as the gguf package decodes it from blocks."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
import transformers
from gguf.quants import dequantize, quantize

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.huggingface import HuggingFaceCheckpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.families.registry import by_gguf_architecture
from megrez.runtime.errors import CheckpointError
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint

GGUF_FAMILIES = [family.model_type for family in by_gguf_architecture().values()]
Q_NAME = "model.layers.1.self_attn.q_proj.weight"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path)).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", [*GGUF_FAMILIES, "mistral"])
@pytest.mark.parametrize("tied", [False, True])
def test_floats_come_back_exactly(tmp_path: Path, family: str, tied: bool) -> None:
    folder = make_checkpoint(tmp_path / "hf", family=family, tied=tied)
    checkpoint = open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder)))
    checkpoint.check()
    reference = HuggingFaceCheckpoint(folder, source="hf")
    assert expected_tensors(checkpoint.config) == expected_tensors(reference.config)
    for name in expected_tensors(checkpoint.config):
        np.testing.assert_array_equal(checkpoint.read(name), reference.read(name))
        assert checkpoint.blocks(name) is None


# transformers takes no head_dim from a Qwen file: these are the ones it assumes.
@pytest.mark.parametrize(("family", "head_dim"), [("llama", 32), ("qwen2", 16), ("qwen3", 128)])
def test_transformers_reads_the_same_weights(tmp_path: Path, family: str, head_dim: int) -> None:
    folder = make_checkpoint(tmp_path / "hf", family=family, head_dim=head_dim)
    path = make_gguf(tmp_path / "tiny.gguf", folder, kind="Q8_0")
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).state_dict()
    checkpoint = open_checkpoint(str(path))
    for name in expected_tensors(checkpoint.config):
        np.testing.assert_array_equal(checkpoint.read(name), state[name].numpy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_blocks_are_lossless(tmp_path: Path, family: str, kind: str) -> None:
    folder = make_checkpoint(tmp_path / "hf", family=family)
    checkpoint = open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder, kind=kind)))
    checkpoint.check()
    for name, shape in expected_tensors(checkpoint.config).items():
        blocks, values = checkpoint.blocks(name), checkpoint.read(name)
        if len(shape) == 1:
            assert blocks is None
            continue
        assert blocks is not None
        assert (blocks.bits, blocks.block, blocks.codes.shape) == (8 if kind == "Q8_0" else 4, 32, shape)
        assert blocks.codes.max() < 2**blocks.bits
        assert (blocks.offsets is not None) == (kind == "Q4_1")
        np.testing.assert_array_equal(blocks.dequantize(), values)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1", "F16", "BF16"])
def test_reads_as_the_gguf_package_decodes(tmp_path: Path, kind: str) -> None:
    folder = make_checkpoint(tmp_path / "hf", family="qwen2")
    checkpoint = open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder, kind=kind)))
    checkpoint.check()
    original = safetensors.numpy.load_file(folder / "model.safetensors")[Q_NAME]
    stored = gguf.GGMLQuantizationType[kind]
    np.testing.assert_array_equal(checkpoint.read(Q_NAME), dequantize(quantize(original, stored), stored))
    assert (checkpoint.blocks(Q_NAME) is None) == (kind not in ("Q4_0", "Q4_1", "Q8_0"))


def test_a_large_tensor_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", make_checkpoint(tmp_path / "hf"), kind="Q4_1")
    whole = open_checkpoint(str(path)).read(Q_NAME)
    monkeypatch.setattr("megrez.compile.checkpoint.gguf.checkpoint.PIECE", 1000)
    np.testing.assert_array_equal(open_checkpoint(str(path)).read(Q_NAME), whole)


def test_biases_are_found_and_reordered(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf", biases=True)
    checkpoint = open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder)))
    checkpoint.check()
    reference = HuggingFaceCheckpoint(folder, source="hf")
    assert checkpoint.config == reference.config
    name = "model.layers.0.self_attn.k_proj.bias"
    np.testing.assert_array_equal(checkpoint.read(name), reference.read(name))


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_the_config_is_the_one_it_was_made_of(tmp_path: Path, family: str) -> None:
    folder = make_checkpoint(tmp_path / "hf", family=family)
    checkpoint = open_checkpoint(str(make_gguf(tmp_path / "tiny.gguf", folder)))
    assert checkpoint.config == HuggingFaceCheckpoint(folder, source="hf").config
    assert checkpoint.source == "tiny.gguf"


def llama3_factors(factor: float, *, theta: float, length: int, half: int) -> np.ndarray[Any, Any]:
    """As converters compute them, one frequency at a time."""
    factors = []
    for i in range(half):
        wave = 2 * np.pi * theta ** (i / half)
        if wave < length / 4:
            factors.append(1.0)
        elif wave > length:
            factors.append(factor)
        else:
            smooth = (length / wave - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama3_scaling_is_recovered(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    factors = llama3_factors(32.0, theta=5e5, length=8192, half=16)
    path = make_gguf(
        tmp_path / "t.gguf",
        folder,
        metadata={"llama.rope.freq_base": 5e5},
        tensors={"rope_freqs.weight": factors},
    )
    checkpoint = open_checkpoint(str(path))
    checkpoint.check()
    assert checkpoint.config.rope == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_frequency_factors_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    factors = llama3_factors(32.0, theta=5e5, length=2048, half=16)
    assert "rope_freqs.weight that is not Llama 3's scaling" in refusal(
        make_gguf(
            tmp_path / "t.gguf", folder, metadata={"llama.rope.freq_base": 5e5}, tensors={"rope_freqs.weight": factors}
        )
    )


def test_yarn(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 128}
    path = make_gguf(
        tmp_path / "t.gguf",
        make_checkpoint(tmp_path / "hf", family="qwen2"),
        metadata={f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()},
    )
    assert open_checkpoint(str(path)).config.rope == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 1.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
    ],
)
def test_linear_scaling_is_read_as_llama_cpp_reads_it(
    tmp_path: Path, metadata: dict[str, Any], factor: float | None
) -> None:
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), metadata=metadata)
    scaled = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    assert open_checkpoint(str(path)).config.rope == {"rope_theta": 10000.0, **scaled}


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (
            {"general.architecture": "gemma2"},
            f"architecture 'gemma2', which is not supported: {', '.join(by_gguf_architecture())} are",
        ),
        ({"llama.expert_count": 8}, "8 experts"),
        ({"split.count": 3}, "one of 3 parts: join them"),
        ({"split.count": 3, "general.architecture": None}, "one of 3 parts: join them"),
        ({"tokenizer.ggml.pre": None}, "does not state its pre-tokenizer"),
        ({"llama.block_count": None}, "num_hidden_layers is missing"),
        ({"llama.attention.head_count_kv": [2, 2]}, "num_key_value_heads is [2, 2]"),
        ({"llama.rope.dimension_count": 16}, "rope.dimension_count 16: only head_dim, 32"),
        ({"llama.rope.scaling.type": "longrope"}, "rope type 'longrope'"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5},
            "yarn_ext_factor 0.5, which is not supported",
        ),
        ({"llama.block_count": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"llama.embedding_length": 192}, "(hidden_size)"),
        ({"tokenizer.ggml.pre": "llama-pbe"}, "pre-tokenizer 'llama-pbe' (did you mean llama-bpe?)"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of model 'bert': gpt2 and llama are supported"),
    ],
)
def test_refuses_by_metadata(tmp_path: Path, metadata: dict[str, Any], told: str) -> None:
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), metadata=metadata)
    message = refusal(path)
    assert told in message
    assert "t.gguf" in message


def test_a_tensor_of_no_known_use(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": np.ones(6, np.float32)}
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), tensors=extra)
    assert "blk.0.attn_sinks.weight is an unknown tensor" in refusal(path)


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors[Q_NAME][3, 40] = np.nan
    tensors["model.norm.weight"][0] = np.inf
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with np.errstate(invalid="ignore"):
        checkpoint = open_checkpoint(str(make_gguf(tmp_path / "t.gguf", folder, kind="Q8_0")))
    for name, stored in ((Q_NAME, "blk.1.attn_q.weight"), ("model.norm.weight", "output_norm.weight")):
        with pytest.raises(CheckpointError, match=rf"{stored} in t\.gguf holds a NaN or an infinity"):
            checkpoint.read(name)
    with pytest.raises(CheckpointError, match="holds a NaN"):
        checkpoint.blocks(Q_NAME)
