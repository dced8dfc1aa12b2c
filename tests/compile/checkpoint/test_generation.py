"""generation_config.json as transformers' generate follows it, or named where the runtime cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from megrez.compile.checkpoint.generation import ignored_keys, read_sampling
from megrez.runtime.errors import CheckpointError
from megrez.runtime.manifest import SamplingDefaults
from megrez.runtime.sampling import SamplingParams, candidates
from tests.models import make_checkpoint


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, (0.0, 0, 1.0, 0.0, 1.0)),
        ({"temperature": 0.7, "min_p": 0.1, "repetition_penalty": 1.02}, (0.0, 0, 1.0, 0.0, 1.02)),
        ({"do_sample": True}, (1.0, 50, 1.0, 0.0, 1.0)),
        ({"do_sample": True, "top_p": 0.0}, (1.0, 1, 1.0, 0.0, 1.0)),
        ({"do_sample": True, "top_k": -1, "temperature": 0}, (0.0, 0, 1.0, 0.0, 1.0)),
        ({"do_sample": True, "min_p": 0.05, "top_k": 0}, (1.0, 0, 1.0, 0.05, 1.0)),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.02},
            (0.7, 0, 0.9, 0.0, 1.02),
        ),
    ],
)
def test_sampling(generation: dict[str, Any], expected: tuple[float, int, float, float, float]) -> None:
    temperature, top_k, top_p, min_p, penalty = expected
    assert read_sampling(generation) == SamplingDefaults(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )


def test_min_p_leaves_the_tokens_that_transformers_leaves() -> None:
    logits = np.random.default_rng(0).standard_normal(500).astype(np.float32) * 3
    defaults = read_sampling({"do_sample": True, "temperature": 0.8, "top_k": 0, "min_p": 0.07})
    ids, _ = candidates(logits, SamplingParams.from_defaults(defaults))
    warped = transformers.MinPLogitsWarper(0.07)(None, torch.tensor(logits)[None] / 0.8)
    assert sorted(ids.tolist()) == torch.isfinite(warped[0]).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("generation", "told"),
    [
        ({"do_sample": True, "temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"do_sample": True, "temperature": -1}, "temperature is -1.0, which sampling cannot use"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ({"do_sample": True, "min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": -2}, "repetition_penalty is -2.0"),
        ({"repetition_penalty": True}, "repetition_penalty is True, not a number"),
    ],
)
def test_sampling_that_nothing_can_follow(generation: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=f"^generation_config.json: {told}.*: repair it or remove it$"):
        read_sampling(generation)


def test_what_the_runtime_does_not_follow_is_named() -> None:
    stated = {"do_sample": True, "no_repeat_ngram_size": 3, "typical_p": 0.9, "suppress_tokens": [5], "num_beams": 4}
    assert ignored_keys(stated) == ("num_beams 4", "no_repeat_ngram_size 3", "suppress_tokens [5]", "typical_p 0.9")
    assert "typical_p" not in ", ".join(ignored_keys({**stated, "do_sample": False}))


def test_what_is_off_is_not_named() -> None:
    assert ignored_keys({key: value for key, value in transformers.GenerationConfig().to_dict().items()}) == ()
    off = {
        "num_beams": 1,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "suppress_tokens": [],
        "forced_bos_token_id": None,
    }
    assert ignored_keys({"do_sample": True, "typical_p": 1.0, **off}) == ()


def test_it_is_told_when_compiling_and_min_p_is_inspected(
    tmp_path: Path, megrez_compile: Callable[..., Any], megrez: Callable[..., tuple[Any, str, str]]
) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    stated = {"do_sample": True, "min_p": 0.05, "no_repeat_ngram_size": 3, "eos_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    done = megrez_compile(folder, "--target", "cpu-fp32", "-o", tmp_path / "b", "--context", 64)
    assert done.code == 0
    assert "that the runtime does not support: no_repeat_ngram_size 3" in done.err
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["sampling"]["min_p"] == 0.05
    assert "min-p 0.05" in megrez("inspect", tmp_path / "b")[1]
