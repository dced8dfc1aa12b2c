"""Keys of config.json that other families read: no part of a Llama's logits, in transformers and here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from megrez.compile.checkpoint.text import read_text_assets
from megrez.compile.families.config import read_config
from megrez.runtime.errors import CheckpointError
from tests.models import make_checkpoint

IDS = [5, 6, 7, 8, 9]
KEYS: dict[str, Any] = {
    **{"logit_scale": 0.1, "logits_scaling": 8.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    **{"embedding_multiplier": 12.0, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    **{"final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 64, "clip_qkv": 0.1},
    **{"use_mrope": True, "mrope_section": [4, 6, 6], "no_rope_layers": [0, 0], "alibi": True, "attention_sink": True},
    **{"use_qk_norm": True, "qk_layernorm": True, "parallel_residual": True, "rms_norm_add_unit_offset": True},
    **{"head_wise_attn_output_gate": True, "use_bidirectional_attention": True, "pretraining_tp": 2},
    **{"sliding_window": 2, "layer_types": ["sliding_attention"] * 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


def edit(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "config.json"
    data: dict[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(data))
    return data


def logits(folder: Path) -> NDArray[np.float32]:
    with torch.no_grad():
        found = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits[0]
    return np.array(found.numpy())


def test_a_llama_ignores_keys_of_other_families(folder: Path) -> None:
    before, plain = logits(folder), read_config(edit(folder))
    assert read_config(edit(folder, **KEYS)) == plain
    np.testing.assert_array_equal(logits(folder), before)


def test_attention_that_is_not_causal_is_refused(folder: Path) -> None:
    before, data = logits(folder), edit(folder, is_causal=False)
    assert np.abs(logits(folder) - before).max() > 0.1
    with pytest.raises(CheckpointError, match="is_causal is false: only causal attention is supported"):
        read_config(data)
    for value in (True, None):
        read_config(edit(folder, is_causal=value))
        np.testing.assert_array_equal(logits(folder), before)


def test_without_generation_config_the_sampling_of_config_json_counts(folder: Path) -> None:
    stated = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 9.0}
    edit(folder, **stated, no_repeat_ngram_size=3)
    for there in (True, False):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config
        assets = read_text_assets(folder, vocab_size=320)
        assert assets is not None
        found = assets.sampling
        assert (found.repetition_penalty == 9.0) is (theirs.repetition_penalty == 9.0) is not there
        assert (assets.ignored == ("no_repeat_ngram_size 3",)) is (theirs.no_repeat_ngram_size == 3) is not there
        if not there:
            expected = {key: getattr(theirs, key) for key in stated if key != "do_sample"}
            assert {key: getattr(found, key) for key in expected} == expected
        (folder / "generation_config.json").unlink(missing_ok=True)


def test_sampling_of_config_json_that_nothing_can_follow_names_that_file(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder, do_sample=True, temperature="hot")
    with pytest.raises(CheckpointError, match=r"^config\.json: temperature is 'hot', not a number"):
        read_text_assets(folder, vocab_size=320)
