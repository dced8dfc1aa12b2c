"""The tokens that calibration reads, beside those that tokenizers and transformers give for the same text."""

import hashlib
import json
import platform
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers

from megrez.compile.calibrate import text_records
from megrez.compile.calibrate.text import CalibrationText, TextRequest, read_calibration_text, with_samples
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text import read_text_assets
from megrez.engines.targets import find_target
from megrez.runtime.errors import BundleError, UsageError
from tests.conftest import Make
from tests.models import write_tokenizer

WORDS = ["the hall", " and", " in the land", ".\n", " hello", "\n\n", " été 你好", " <|im_end|>"]
DEFAULT = f"pydoc_data.topics of Python {platform.python_version()}"
TALK = [{"role": "user", "content": "the hall?"}, {"role": "assistant", "content": "in the land"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def assets(folder: Path) -> TextAssets:
    found = read_text_assets(folder, vocab_size=320)
    assert found is not None
    return found


def with_bos(folder: Path, *, add_bos: bool = True, template: str | None = None) -> TextAssets:
    """The same tokenizer with <|endoftext|> (256) as its BOS, which its post-processor adds."""
    if add_bos:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    found = read_text_assets(folder, vocab_size=320)
    assert found is not None
    return found


def some_text(words: int = 2000, seed: int = 0) -> str:
    dice = random.Random(seed)
    return "".join(dice.choice(WORDS) for _ in range(words))


def encode(folder: Path, text: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_lines(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def read(assets: TextAssets | None, path: Path | None, **changed: Any) -> CalibrationText:
    return read_calibration_text(assets, path, **{"samples": 4, "length": 16, "held_out": 10, "seed": None, **changed})


def test_the_first_windows_and_what_follows_them(folder: Path, assets: TextAssets, tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", some_text())
    found = read(assets, path)
    ids = encode(folder, some_text())
    assert found.tokens.dtype == found.held_out.dtype == np.int64
    assert found.tokens.tolist() == [ids[at : at + 16] for at in range(0, 64, 16)]
    assert found.held_out.tolist() == ids[64:74]
    assert (found.source, found.held_out_source, found.seed) == ("words.txt", "words.txt", None)
    raw = b"".join(token.to_bytes(8, "little") for token in ids[:64])
    assert found.sha256 == hashlib.sha256(raw).hexdigest()


def test_drawn_windows_are_the_texts_own_and_none_is_taken_twice(
    folder: Path, assets: TextAssets, tmp_path: Path
) -> None:
    text = " ".join(map(str, random.Random(0).sample(range(10**6), 1000)))
    path, ids = write(tmp_path / "words.txt", text), encode(folder, text)
    windows = [tuple(ids[at : at + 16]) for at in range(0, len(ids) - 15, 16)]
    assert len(set(windows)) == len(windows)
    found = read(assets, path, samples=20, seed=3, held_out=40)
    rows = [tuple(row) for row in found.tokens.tolist()]
    held = [tuple(found.held_out[at : at + 16].tolist()) for at in (0, 16)]
    assert len({*rows, *held}) == 22 and {*rows, *held} <= set(windows)
    assert tuple(found.held_out[32:].tolist()) in {window[:8] for window in set(windows) - {*rows, *held}}
    assert rows != windows[:20] and (found.seed, found.held_out_source) == (3, "words.txt")
    again, other = read(assets, path, samples=20, seed=3, held_out=40), read(assets, path, samples=20, seed=4)
    assert again.sha256 == found.sha256 != other.sha256
    assert again.held_out.tolist() == found.held_out.tolist()
    every = read(assets, path, samples=len(windows), seed=0, held_out=0)
    assert sorted(map(tuple, every.tokens.tolist())) == sorted(windows)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_short_file_leaves_the_holding_out_to_the_default_text(
    folder: Path, assets: TextAssets, tmp_path: Path, seed: int | None
) -> None:
    path = write(tmp_path / "short.txt", some_text(60))
    samples = len(encode(folder, some_text(60))) // 16
    found = read(assets, path, samples=samples, held_out=30, seed=seed)
    assert (found.source, found.held_out_source) == ("short.txt", DEFAULT)
    assert found.held_out.tolist() == encode(folder, topics()[:1000])[:30]
    assert read(assets, path, samples=samples, held_out=0, seed=seed).held_out_source == "short.txt"


def test_the_default_text(folder: Path, assets: TextAssets) -> None:
    found = read(assets, None, samples=8, length=32, held_out=100)
    ids = encode(folder, topics()[:5000])
    assert found.tokens.ravel().tolist() == ids[:256] and found.held_out.tolist() == ids[256:356]
    assert (found.source, found.held_out_source) == (DEFAULT, DEFAULT)


def test_the_default_text_is_long_enough_for_a_usual_calibration(assets: TextAssets) -> None:
    """This tokenizer has almost a token per character, four times as many as a real one."""
    assert read(assets, None, samples=128, length=2048, held_out=8192, seed=0).tokens.shape == (128, 2048)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_bos_leads_each_window_once(tmp_path: Path, seed: int | None) -> None:
    write_tokenizer(tmp_path)
    text = "<|endoftext|>" + some_text(300) + "<|endoftext|>"
    found = read(with_bos(tmp_path), write(tmp_path / "words.txt", text), seed=seed)
    ids, windows = encode(tmp_path, text), []
    while len(ids) >= 16:
        taken = 16 if ids[0] == 256 else 15
        windows.append([256, *ids[:taken]][-16:])
        ids = ids[taken:]
    assert windows[0].count(256) == 1
    if seed is None:
        assert found.tokens.tolist() == windows[:4]
        assert found.held_out.tolist() == windows[4][1:11]
    else:
        assert all(row in windows for row in found.tokens.tolist())
        assert 256 not in found.held_out.tolist()


def test_a_model_that_wants_no_bos_gets_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = read(with_bos(tmp_path, add_bos=False), write(tmp_path / "words.txt", some_text()))
    assert found.tokens.ravel().tolist() == encode(tmp_path, some_text())[:64]


def test_records_are_joined_in_order(folder: Path, assets: TextAssets, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "records.jsonl", some_text(50), {"text": "the <|im_end|>", "id": 7}, {"messages": TALK}
    )
    path.write_text(path.read_text().replace("\n", "\n\n"))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    talk = theirs.apply_chat_template(TALK, tokenize=True, return_dict=False)
    ids = [*encode(folder, some_text(50)), *encode(folder, "the <|im_end|>"), *talk]
    found = read(assets, path, samples=1, length=len(ids), held_out=0)
    assert found.tokens.tolist() == [ids]


def test_a_template_writes_its_own_bos_and_eos(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    path = write_lines(tmp_path / "records.jsonl", {"messages": TALK})
    ids = encode(tmp_path, "<|endoftext|>the hall?<|im_end|>in the land<|im_end|>")
    found = read(with_bos(tmp_path, template=template), path, samples=1, length=len(ids), held_out=0)
    assert found.tokens.tolist() == [ids]


def test_a_long_file_is_read_in_pieces_and_no_further_than_needed(
    folder: Path, assets: TextAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "PIECE", 1000)
    path = write(tmp_path / "long.txt", "the hall and the land\n" * 2000)
    ids = encode(folder, "the hall and the land\n" * 2000)
    assert read(assets, path, samples=1, length=len(ids), held_out=0).tokens.tolist() == [ids]
    # Decoding runs ahead of what is asked for by some kilobytes.
    path.write_bytes(path.read_bytes() + b"\xff")
    assert read(assets, path).tokens.ravel().tolist() == ids[:64]
    with pytest.raises(UsageError, match=r"long\.txt cannot be read as UTF-8"):
        read(assets, path, seed=0)


def test_text_without_line_ends_is_still_cut(
    folder: Path, assets: TextAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "PIECE", 50)
    path = write(tmp_path / "long.txt", "\ufeff" + "z" * 1000)
    assert read(assets, path, samples=10, length=100, held_out=0).tokens.ravel().tolist() == encode(folder, "z") * 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samples": 0}, "--calib-samples is 0: calibrate on at least 1"),
        ({"length": 1}, "--calib-tokens is 1: a sample takes at least 2 tokens"),
        ({"held_out": -1}, "-1 held-out tokens were requested"),
        ({"seed": -1}, "the seed of the calibration text is -1"),
        (
            {"samples": 10**4},
            "10000 samples of 16 tokens were requested and words.txt has COUNT tokens, enough for FIT: ",
        ),
        ({"samples": 10**4, "seed": 1}, "lower --calib-samples or --calib-tokens, or give a longer text"),
        (
            {"held_out": 10**6},
            "1000000 held-out tokens were requested and the text has too few left: lower --calib-samples",
        ),
    ],
)
def test_a_request_that_cannot_be_met(
    folder: Path, assets: TextAssets, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "words.txt", some_text())
    count = len(encode(folder, some_text()))
    with pytest.raises(UsageError) as caught:
        read(assets, path, **changed)
    assert said.replace("COUNT", str(count)).replace("FIT", str(count // 16)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "none.txt cannot be read as UTF-8 text (No such file or directory): give another file"),
        (".", None, "cannot be read as UTF-8 text (Is a directory)"),
        ("empty.txt", b"", "empty.txt holds no text: give another file"),
        ("empty.jsonl", b"\n \n", "empty.jsonl holds no text: give another file"),
        ("blank.jsonl", b'""\n', "blank.jsonl holds no text: give another file"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt cannot be read as UTF-8 text (invalid continuation byte)"),
        ("wide.txt", "text".encode("utf-16"), "wide.txt cannot be read as UTF-8 text (invalid start byte)"),
        ("model.bin", b"GGUF\x00\x00\x00", "model.bin is a binary file: give a UTF-8 text"),
        ("a.jsonl", b'"the"\n\n{"text": \n', "line 3 of FOLDER/a.jsonl is not JSON ("),
        ("a.jsonl", b"[" * 100_000, "line 1 of FOLDER/a.jsonl is not JSON ("),
        ("a.jsonl", b'{"prompt": "the"}', "line 1 of FOLDER/a.jsonl cannot be used: it has no known format: write"),
        ("a.jsonl", b"7", "it has no known format: write a string, "),
        ("a.jsonl", b'{"text": "a", "messages": []}', "it has no known format"),
        ("a.jsonl", b'{"messages": "hello"}', "it has no known format"),
        ("a.jsonl", b'{"messages": []}', "line 1 of FOLDER/a.jsonl cannot be used: there are no messages"),
        ("a.jsonl", b'"a"\n{"messages": [{"content": "a"}]}', "line 2 of FOLDER/a.jsonl cannot be used: message 0 has"),
        ("a.jsonl", b'"\\ud800"', "line 1 of FOLDER/a.jsonl cannot be used: the prompt is not valid Unicode text"),
    ],
)
def test_a_file_that_cannot_be_used(
    assets: TextAssets, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(assets, tmp_path / name)
    assert said.replace("FOLDER", str(tmp_path)) in str(caught.value) and "\n" not in str(caught.value)


def test_messages_need_a_template_and_one_that_takes_them(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", {"messages": TALK})
    with pytest.raises(
        UsageError, match=r"line 1 of .*a\.jsonl .*it holds messages and the model has no chat template"
    ):
        read(with_bos(tmp_path), path)
    with pytest.raises(BundleError, match=r"line 1 of .*a\.jsonl cannot be used: the chat template failed"):
        read(with_bos(tmp_path, template="{{ messages[0].none.none }}"), path)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the checkpoint has no tokenizer, .*: add its tokenizer\.json"):
        read(None, write(tmp_path / "words.txt", some_text()))


def test_a_python_without_the_default_text(assets: TextAssets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="this Python comes without pydoc_data, the default text: name a text file"):
        read(assets, None)


def test_the_default_text_itself_can_be_too_short(assets: TextAssets) -> None:
    with pytest.raises(UsageError, match=r"pydoc_data\.topics of Python .* has \d+ tokens, enough for \d+: lower"):
        read(assets, None, samples=10**4, length=1024)
    with pytest.raises(UsageError, match="too few left: lower"):
        read(assets, None, held_out=10**7)


def test_a_large_model_is_calibrated_on_fewer_samples_where_rtn_would_do(
    checkpoint_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_of()
    checkpoint = open_checkpoint(str(folder))
    parameters = sum(tensor.size for tensor in safetensors.numpy.load_file(folder / "model.safetensors").values())

    def samples(target: str, requested: int | None = None) -> int | None:
        return with_samples(TextRequest(samples=requested), checkpoint, find_target(target)).samples

    monkeypatch.setattr("megrez.compile.calibrate.text.LARGE", parameters)
    assert [samples("cpu-int4"), samples("trt-fp8")] == [32, 32]
    monkeypatch.setattr("megrez.compile.calibrate.text.LARGE", parameters - 1)
    assert [samples("cpu-int4"), samples("cuda-int4"), samples("trt-fp8"), samples("qnn-w4a16")] == [4, 4, 32, 32]
    assert [samples("cpu-int4", 7), samples("trt-fp8", 7)] == [7, 7]
