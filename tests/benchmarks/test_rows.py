"""The rows of benchmarks/speed.py: which file each runtime reads, and how a command is written down."""

import json
from pathlib import Path

import numpy as np
import pytest
import rows
from peers.runtimes import find_peers

from benchmarks.published import table
from benchmarks.random_checkpoint import write_gguf, write_of_config
from benchmarks.report import command_line
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors

TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "hidden_act": "silu", "eos_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "head_dim": 16},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "use_sliding_window": False},
}


def workload(bits: int):
    return rows.Workload(device="cpu", bits=bits, threads=2, prompt_tokens=4, output_tokens=4, streams=1)


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_of_a_config_are_the_same_in_both_formats(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **KINDS[kind], **TINY}))
    write_of_config(tmp_path / "hf", tmp_path / "config.json")
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf")
    folder, file = open_checkpoint(str(tmp_path / "hf")), open_checkpoint(str(tmp_path / "model.gguf"))
    names = expected_tensors(folder.config)
    assert ("model.layers.0.self_attn.q_proj.bias" in names) == (kind == "qwen2")
    for name in names:
        np.testing.assert_array_equal(folder.read(name), file.read(name), err_msg=name)


def test_a_gguf_file_is_read_as_it_is_by_those_who_can(monkeypatch):
    monkeypatch.setattr(rows.artefacts, "gguf_types", lambda path: "Q4_1, lm_head Q8_0")
    monkeypatch.setattr(rows.artefacts, "gguf_bytes_per_token", lambda path: 7)
    source = rows.Source("small", Path("small.gguf"))
    for peer in find_peers((), "cpu"):
        if peer.artefact in ("ik", "llama", "openvino"):
            (name, row), *others = rows.peer_rows(peer, Path("python"), Path(), source, workload(8)).items()
            assert name == f"{peer.name} Q4_1, lm_head Q8_0" and row.bytes_per_token == 7
            assert row.command[2:] == [Path("small.gguf"), 2, rows.artefacts.CONTEXT, 4, 1]
            repacked = {f"{name}, repacked": [*row.command, "--repack"]} if peer.artefact == "ik" else {}
            assert {other: one.command for other, one in others} == repacked
        else:
            with pytest.raises(rows.UnavailableError, match="it reads no GGUF file"):
                rows.peer_rows(peer, Path("python"), Path(), source, workload(8))


@pytest.mark.parametrize(("bits", "target"), [(4, "cpu-int4"), (8, "cpu-int8")])
def test_bits_choose_our_target_and_the_peers_types(bits, target):
    assert workload(bits).target == target and rows.artefacts.GGUF_TYPES[bits] == f"Q{bits}_0"


def test_a_command_is_written_without_folders_of_the_machine():
    given = [
        "--python",
        "OpenVINO GenAI=/opt/a b/bin/python",
        "--output",
        "/srv/out/x",
        "--cache",
        ".cache/b",
        "--rounds",
        "3",
    ]
    assert command_line("benchmarks/speed.py", given) == (
        "python benchmarks/speed.py --python 'OpenVINO GenAI=python' --output x --cache .cache/b --rounds 3"
    )


def test_a_published_row_has_medians_and_ratios_with_quartiles():
    row = {"bytes_per_token": 489.4e6, "bandwidth_share": 0.714, "prefill_ours": 2.0, "decode_ours": 1.5}
    row |= {"prefill_ours_quartiles": (1.5, 2.5), "decode_ours_quartiles": (1.25, 1.75)}
    rows = [{**row, "name": name, "prefill": 100.04, "decode": 20.0} for name in ("ours", "theirs")]
    assert table({"results": rows}).splitlines()[2:] == [
        "| ours | 100.0 | 20.0 |  |  | 489, 71% |",
        "| theirs | 100.0 | 20.0 | 2.00 (1.50 to 2.50) | 1.50 (1.25 to 1.75) | 489, 71% |",
    ]
