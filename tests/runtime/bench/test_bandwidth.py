"""What a decode step reads, worked out by hand for shapes whose tensors are known."""

import dataclasses

import pytest

from megrez.runtime.bench.bandwidth import weight_bytes
from megrez.runtime.manifest import Architecture, File, KvCache, Quantization

SHAPE = Architecture(
    model_type="llama",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=1000,
)
LAYERS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # q and o, k and v, the MLP
TABLE = 1000 * 64
GPTQ = Quantization(
    algorithm="gptq",
    projections="int4 block 128",
    sensitive=None,
    inputs=None,
    activations=None,
    embedding="int8 block 128",
    lm_head="int4 block 128",
    keeps_blocks=False,
    rotated=False,
)


@pytest.fixture
def holding(manifest):
    def made(stored: int, *, cache: str = "float32", engine: str = "ort", quantization: Quantization | None = None):
        files = [("model.onnx.data", stored), ("tokenizer.json", 999), ("chat_template.jinja", 99)]
        return dataclasses.replace(
            manifest,
            engine=engine,
            architecture=SHAPE,
            kv_cache=KvCache(dtype=cache, bytes_per_token=32),
            files=tuple(File(path=path, size=size, sha256="") for path, size in files),
            provenance=dataclasses.replace(manifest.provenance, quantization=quantization),
        )

    return made


def test_a_tied_table_is_read_as_the_head_and_one_of_its_own_is_not(holding):
    tied, untied = (LAYERS + TABLE) * 4, (LAYERS + 2 * TABLE) * 4
    assert weight_bytes(holding(tied)) == tied
    assert weight_bytes(holding(untied)) == (LAYERS + TABLE) * 4
    assert weight_bytes(holding((LAYERS + 2 * TABLE) * 2, cache="float16", engine="ort-cuda")) == (LAYERS + TABLE) * 2
    assert weight_bytes(holding(untied, cache="int8")) == (LAYERS + TABLE) * 4


def test_tables_of_different_formats_are_two(holding):
    stored = LAYERS // 2 + TABLE + TABLE // 2
    assert weight_bytes(holding(stored, quantization=GPTQ)) == LAYERS // 2 + TABLE // 2


def test_tables_of_one_format_are_told_apart_by_the_files_size(holding):
    same = dataclasses.replace(GPTQ, projections="fp8 per tensor", embedding=None, lm_head=None)
    for tables in (1, 2):
        stored = LAYERS + tables * TABLE * 2
        assert (
            weight_bytes(holding(stored, cache="float16", engine="tensorrt", quantization=same)) == LAYERS + TABLE * 2
        )
