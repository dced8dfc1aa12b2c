"""Post-processors, template names and decoding: as transformers has them, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers.processors import TemplateProcessing

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text import read_text_assets
from megrez.runtime.errors import CheckpointError
from megrez.runtime.text import Text
from tests.models import write_tokenizer

START, TURN, END = ("<|endoftext|>", 256), ("<|im_start|>", 257), ("<|im_end|>", 258)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def state(folder: Path, **stated: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))


def process(folder: Path, single: str) -> None:
    path = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[START, TURN, END])
    tokenizer.save(path)


def read(folder: Path) -> TextAssets:
    assets = read_text_assets(folder, vocab_size=320)
    assert assets is not None
    return assets


def runtime(assets: TextAssets) -> Text:
    return Text(tokenizers.Tokenizer.from_buffer(assets.tokenizer_json), assets.tokens)


@pytest.mark.parametrize("bos", [None, "<|endoftext|>", "<|pad|>"])
@pytest.mark.parametrize("single", ["$A", "<|endoftext|> $A", "<|im_start|> $A"])
def test_a_leading_token_is_followed_whatever_it_is_called(folder: Path, bos: str | None, single: str) -> None:
    process(folder, single)
    state(folder, bos_token=bos)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), runtime(read(folder))
    for text in ("the land", "", "\n"):
        assert ours.encode(text) == theirs(text).input_ids


@pytest.mark.parametrize(
    ("single", "made"),
    [
        ("$A <|im_end|>", "a <|im_end|>"),
        ("<|endoftext|> $A <|im_end|>", "<|endoftext|> a <|im_end|>"),
        ("<|endoftext|> <|im_start|> $A", "<|endoftext|> <|im_start|> a"),
    ],
)
def test_a_post_processor_that_adds_more_is_refused(folder: Path, single: str, made: str) -> None:
    process(folder, single)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.convert_ids_to_tokens(theirs("a").input_ids) == made.split()
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    told = f"post-processor encodes the text 'a' as {made!r}, and a bundle can add a leading token only"
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("template", "stated", "told"),
    [
        ("{{ eos_token }}", {"eos_token": None}, "eos_token as '<|im_end|>', not None"),
        ("{% for m in messages %}{{ m.content }}{{ unk_token }}{% endfor %}", {"unk_token": "<|pad|>"}, "unk_token"),
        ("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<|endoftext|>"}, "bos_token as '<|im_start|>'"),
        ("{% if messages|length > 2 %}{{ cls_token }}{% endif %}", {"cls_token": "<|pad|>"}, "cls_token as None"),
    ],
)
def test_a_name_that_the_template_would_get_otherwise_is_refused(
    folder: Path, template: str, stated: dict[str, Any], told: str
) -> None:
    process(folder, "<|im_start|> $A")
    state(folder, chat_template=template, **stated)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "the chat template uses a special token that differs in a bundle" in str(caught.value)
    assert told in str(caught.value)
    state(folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert read(folder).tokens.bos == 257


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("model", ["BPE", "WordLevel"])
@pytest.mark.parametrize("wanted", [False, True])
def test_spaces_are_cleaned_up_where_that_is_named(tmp_path: Path, model: str, forced: bool, wanted: bool) -> None:
    words = {"hello": 0, "there": 1, ",": 2, "!": 3, "</s>": 4}
    if model == "BPE":
        write_tokenizer(tmp_path)
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    force = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": forced}
    state(tmp_path, clean_up_tokenization_spaces=wanted, **force)
    theirs, assets = transformers.AutoTokenizer.from_pretrained(tmp_path), read(tmp_path)
    ids = theirs("hello , there !").input_ids
    cleaned = wanted and (forced or model == "WordLevel")
    assert (runtime(assets).decode(ids) != theirs.decode(ids)) is cleaned
    assert assets.ignored == (("clean_up_tokenization_spaces True",) if cleaned else ())


def test_model_max_length_cuts_nothing(folder: Path) -> None:
    state(folder, model_max_length=3)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=40, pad_id=259, pad_token="<|pad|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    text = "the land and the hall"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert runtime(read(folder)).encode(text) == ids and len(ids) > 3
