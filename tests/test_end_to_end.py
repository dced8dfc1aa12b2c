"""From a checkpoint's files to an answer: what one half of the product writes, the other reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import SCHEMA_VERSION
from megrez.runtime.model import Model
from megrez.runtime.sampling import SamplingParams
from tests.gguf_models import make_gguf
from tests.reference import greedy, logits

GREEDY = SamplingParams()
PROMPT = "the land and all in it"


@pytest.fixture
def bundle(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> Path:
    assert megrez_compile(checkpoint_of(), "--target", "cpu-fp32", "-o", tmp_path / "b", "--context", 48).code == 0
    return tmp_path / "b"


def test_text_in_and_out(bundle: Path, checkpoint_of: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(), local_files_only=True)
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    expected = greedy(checkpoint_of(), ids, 12)
    with Model.open(bundle, threads=1, verify=True) as model:
        answer = model.generate(PROMPT, GREEDY, max_tokens=12)
    assert (answer.prompt_tokens, list(answer.token_ids)) == (len(ids), expected)
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_messages_go_through_the_checkpoints_template(bundle: Path, checkpoint_of: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(), local_files_only=True)
    messages = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with Model.open(bundle, threads=1) as model:
        assert model.encode(messages) == ids  # type: ignore[arg-type]
        answer = model.generate(messages, GREEDY, max_tokens=8)  # type: ignore[arg-type]
    assert list(answer.token_ids) == greedy(checkpoint_of(), ids, 8)


def test_a_stop_id_ends_the_answer(bundle: Path, checkpoint_of: Any) -> None:
    """The manifest's stop ids are made those that the model says third and, had it gone on, later."""
    with Model.open(bundle, threads=1) as model:
        free = list(model.generate(PROMPT, GREEDY, max_tokens=12).token_ids)
    third = free[2]
    at = free.index(third)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tokens"]["stop"] = [third]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with Model.open(bundle, threads=1) as model:
        answer = model.generate(PROMPT, GREEDY, max_tokens=12)
    assert (list(answer.token_ids), answer.finish_reason) == (free[: at + 1], "stop")


def test_generation_ends_with_the_context(bundle: Path) -> None:
    with Model.open(bundle, threads=1) as model:
        ids = model.encode(PROMPT)
        pieces = list(model.stream_ids(ids, GREEDY))
    # The last token needs no room in the cache.
    assert len(pieces) == 48 - len(ids) + 1 and pieces[-1].finish_reason == "length"


def test_a_prompt_longer_than_the_context_is_refused(bundle: Path) -> None:
    with Model.open(bundle, threads=1) as model:
        with pytest.raises(UsageError, match="the prompt has 49 tokens, the context holds 48"):
            model.stream_ids([1] * 49, GREEDY)
        assert [piece.finish_reason for piece in model.stream_ids([1] * 48, GREEDY)] == ["length"]


@pytest.mark.parametrize("target", ["cpu-int4", "cuda-int4"])
def test_a_tied_gguf_of_floats_gets_a_head_of_its_own(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, target: str
) -> None:
    """It is turned, which unties it: the file has no tensor of that name."""
    path = make_gguf(tmp_path / "tiny.gguf", checkpoint_of(tied=True), kind="F16")
    options = ("--target", target, "--algorithm", "rtn", "--context", 48, "-o", tmp_path / "b")
    done = megrez_compile(path, *options, "--fidelity-tokens", 128)
    assert done.code == 0, done.err
    measured = open_bundle(tmp_path / "b").manifest.measured
    assert measured is not None and measured.fidelity.kl_mean < 0.2


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_gguf_blocks_carried_over_answer_as_their_own_weights_do(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, kind: str
) -> None:
    """transformers decodes the same file, and every token of ours is its favourite, or as good as that.

    int8 activations move a logit of such a model by 0.1 (tests/compile/test_quantized_bundles.py), so two of them
    change places where they are less than 0.2 apart; the head's 8 bits in place of 4 or 8 take less than the rest.
    """
    path = make_gguf(tmp_path / "tiny.gguf", checkpoint_of(), kind=kind)
    target = "cpu-int8" if kind == "Q8_0" else "cpu-int4"
    assert megrez_compile(path, "--target", target, "-o", tmp_path / "b", "--context", 48).code == 0
    with Model.open(tmp_path / "b", threads=1, verify=True) as model:
        ids = model.encode(PROMPT)
        answer = model.generate(PROMPT, GREEDY, max_tokens=10)
    assert answer.prompt_tokens == len(ids)
    # Along our own answer, so that one near tie does not make all that follows incomparable.
    rows = logits(tmp_path, [*ids, *answer.token_ids[:-1]], gguf_file=path.name)[len(ids) - 1 :]
    for row, token in zip(rows, answer.token_ids, strict=True):
        assert row.max() - row[token] < 0.3


def test_a_flipped_bit_is_found_by_verify_and_named(bundle: Path) -> None:
    file = bundle / "model.onnx.data"
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 1
    file.write_bytes(raw)
    Model.open(bundle, threads=1).close()
    with pytest.raises(BundleError, match=r"model\.onnx\.data has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        Model.open(bundle, threads=1, verify=True)


def test_a_cut_file_is_found_at_once(bundle: Path) -> None:
    file = bundle / "model.onnx.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx\.data has \d+ bytes, expected \d+"):
        Model.open(bundle, threads=1)


def test_a_bundle_of_a_newer_schema_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["schema_version"] += 1
    manifest["something_new"] = {"of": "later"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError, match=rf"schema version {SCHEMA_VERSION + 1}, this runtime reads up to {SCHEMA_VERSION}: upgrade"
    ):
        Model.open(bundle, threads=1)


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    with Model.open(bundle, threads=1) as model:
        expected = model.generate(PROMPT, GREEDY, max_tokens=6).token_ids
    moved = bundle.rename(tmp_path / "elsewhere")
    with Model.open(moved, threads=1, verify=True) as model:
        assert model.generate(PROMPT, GREEDY, max_tokens=6).token_ids == expected
