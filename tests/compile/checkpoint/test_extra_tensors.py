"""Tensors that no weight of the model asks for are left out whatever their type; what is asked for is named."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.runtime.errors import CheckpointError
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint

BUFFERS = {
    "BOOL": torch.tril(torch.ones(1, 1, 8, 8)).bool(),
    "U8": torch.zeros(5, dtype=torch.uint8),
    "I64": torch.arange(9)[None],
    "F8_E4M3": torch.ones(2, 2).to(torch.float8_e4m3fn),
    "0-d F32": torch.tensor(-1e4),
    "0-d I64": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "infinite": torch.full((2,), -torch.inf),
}


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(path), **tensors}, path, metadata={"format": "pt"})


def assert_reads_as_transformers(checkpoint: Checkpoint, model: transformers.PreTrainedModel) -> None:
    checkpoint.check()
    state = model.state_dict()
    for name in expected_tensors(checkpoint.config):
        np.testing.assert_array_equal(checkpoint.read(name), state[name].numpy())


def test_buffers_of_a_folder(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    inside = {f"model.layers.0.self_attn.buffer_{at}": buffer for at, buffer in enumerate(BUFFERS.values())}
    add(tmp_path, inside | {f"v_head.{at}.weight": buffer.clone() for at, buffer in enumerate(BUFFERS.values())})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_reads_as_transformers(open_checkpoint(str(tmp_path)), model)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_a_weight_of_such_a_type_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    make_checkpoint(tmp_path)
    add(tmp_path, {"model.layers.1.mlp.up_proj.weight": torch.ones(160, 96).to(dtype)})
    told = r"model\.layers\.1\.mlp\.up_proj\.weight in model\.safetensors is stored as \w+ \(only F64, F32"
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(str(tmp_path)).check()


def test_buffers_of_a_gguf(tmp_path: Path) -> None:
    extra = {
        "blk.0.attn_rot_embd.weight": np.ones(16, np.float32),
        "blk.1.masked_bias": np.array([3], np.int64),
        "blk.9.attn_norm.bias": np.ones(4, np.float32),
        "v_head.summary.weight": np.ones((1, 96), np.float32),
        "steps": np.array([1], np.int8),
    }
    folder = make_checkpoint(tmp_path / "hf")
    path = make_gguf(tmp_path / "t.gguf", folder, tensors=extra)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # its GGUF reader fails
    assert_reads_as_transformers(open_checkpoint(str(path)), model)


def set_type(path: Path, tensor: str, number: int) -> None:
    """Change the storage type that the header names."""
    data = bytearray(path.read_bytes())
    at = data.index(tensor.encode()) + len(tensor)
    at += 4 + 8 * int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)


def test_a_gguf_type_that_nothing_knows(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    path = make_gguf(tmp_path / "t.gguf", folder, tensors={"extra.buffer": np.ones(32, np.float32)})
    set_type(path, "extra.buffer", 999)
    open_checkpoint(str(path)).check()
    set_type(path, "blk.1.attn_q.weight", 999)
    with pytest.raises(CheckpointError, match=r"GGML type 999, which blk\.1\.attn_q\.weight is stored as, cannot"):
        open_checkpoint(str(path)).check()
    set_type(path, "blk.1.attn_q.weight", gguf.GGMLQuantizationType.I32)
    with pytest.raises(CheckpointError, match=r"I32, which blk\.1\.attn_q\.weight is stored as, cannot be read"):
        open_checkpoint(str(path)).check()


@pytest.mark.parametrize(
    "name",
    [
        *("blk.0.attn_sinks.weight", "blk.1.post_ffw_norm.weight", "blk.0.post_norm.bias", "blk.0.attn_q.scale"),
        *("output_norm.bias", "rope_factors_long.weight", "token_types.weight"),
    ],
)
def test_what_another_decoder_would_use_is_no_buffer(tmp_path: Path, name: str) -> None:
    extra = {name: np.ones(96, np.float32)}
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), tensors=extra)
    with pytest.raises(CheckpointError, match=f"{name} is an unknown tensor"):
        open_checkpoint(str(path)).check()
