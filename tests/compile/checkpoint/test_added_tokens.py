"""Tokens beside tokenizer.json get the ids and flags that transformers' AutoTokenizer gives them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from megrez.compile.checkpoint.text import read_text_assets
from megrez.runtime.errors import CheckpointError
from tests.models import make_checkpoint, write_tokenizer

TEXTS = ("the <extra> and", "<extra><|im_start|>in<more>", " <extra>  the\n<more> x", "<b>a<extra>b</b>", "<img> THE")


def flags(content: str, **changed: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, **plain, "special": True, **changed}


def write(folder: Path, name: str, data: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **data}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = make_checkpoint(tmp_path_factory.mktemp("plain"))
    return {path.name: path.read_text() for path in folder.glob("*.json")}


FILES: dict[str, dict[str, dict[str, Any]]] = {
    "decoder": {"tokenizer_config.json": {"added_tokens_decoder": {"400": flags("<more>"), "300": flags("<extra>")}}},
    "flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "273": flags("<extra>", lstrip=True, rstrip=True, special=False),
                "274": flags("<more>", single_word=True, normalized=True, special=False),
            }
        }
    },
    "changed flags": {"tokenizer_config.json": {"added_tokens_decoder": {"257": flags("<|im_start|>", rstrip=True)}}},
    "a token of the vocabulary": {"tokenizer_config.json": {"added_tokens_decoder": {"3": flags("the")}}},
    "an id that is taken": {"tokenizer_config.json": {"added_tokens_decoder": {"3": flags("<extra>")}}},
    "additional list": {"tokenizer_config.json": {"additional_special_tokens": ["<extra>", "<more>"]}},
    "extra list": {"tokenizer_config.json": {"extra_special_tokens": ["<more>", "<extra>"]}},
    "extra dict": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<img>", "x": "<extra>"}}},
    "extra list of objects": {
        "tokenizer_config.json": {"extra_special_tokens": [{"__type": "AddedToken", **flags("<extra>", lstrip=True)}]}
    },
    "own name": {"tokenizer_config.json": {"image_token": "<img>", "sep_token": "<extra>", "cls_token": "<more>"}},
    "added_tokens.json": {"added_tokens.json": {"<more>": 400, "<extra>": 300}},
    "added_tokens.json beside a decoder": {
        "added_tokens.json": {"<more>": 400},
        "tokenizer_config.json": {"added_tokens_decoder": {"300": flags("<extra>")}},
    },
    "added_tokens.json, special": {
        "added_tokens.json": {"<more>": 301, "<extra>": 300},
        "tokenizer_config.json": {"additional_special_tokens": ["<extra>"]},
    },
    "special map": {
        "special_tokens_map.json": {"sep_token": flags("<extra>", rstrip=True), "additional_special_tokens": ["<more>"]}
    },
    "special map beside a decoder": {
        "special_tokens_map.json": {"additional_special_tokens": ["<more>"]},
        "tokenizer_config.json": {"added_tokens_decoder": {"300": flags("<extra>")}},
    },
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("bare", [False, True])
def test_ids_are_those_of_transformers(
    tmp_path: Path, plain: dict[str, str], files: dict[str, dict[str, Any]], bare: bool
) -> None:
    for name, content in plain.items():
        (tmp_path / name).write_text(content)
    if bare:
        write(tmp_path, "tokenizer.json", {"added_tokens": []})
    for name, data in files.items():
        write(tmp_path, name, data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assets = read_text_assets(tmp_path, vocab_size=1000)
    assert assets is not None
    ours = tokenizers.Tokenizer.from_str(assets.tokenizer_json.decode())
    assert ours.get_vocab() == theirs.get_vocab()
    added = {i: repr(token) for i, token in ours.get_added_tokens_decoder().items()}
    assert added == {i: repr(token) for i, token in theirs.added_tokens_decoder.items()}
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_a_tokenizer_that_lacks_nothing_is_carried_over_byte_for_byte(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assets = read_text_assets(tmp_path, vocab_size=1000)
    assert assets is not None
    assert assets.tokenizer_json == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is not an object"),
        ({"added_tokens_decoder": {"x": flags("<a>")}}, "added_tokens_decoder is not an object"),
        ({"added_tokens_decoder": {"300": 5}}, "added_tokens_decoder as something that is not a token"),
        ({"added_tokens_decoder": {"300": {**flags("<a>"), "lstrip": "yes"}}}, "something that is not a token"),
        ({"extra_special_tokens": 5}, "extra_special_tokens is neither"),
        ({"extra_special_tokens": [5]}, "extra_special_tokens as something that is not a token"),
        ({"bos_token": 5}, "bos_token as something that is not a token"),
        ({"split_special_tokens": True}, "split_special_tokens is on"),
    ],
)
def test_what_is_no_token_is_named(tmp_path: Path, stated: dict[str, Any], told: str) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "tokenizer_config.json", stated)
    with pytest.raises(CheckpointError, match=told):
        read_text_assets(tmp_path, vocab_size=1000)


def test_added_tokens_json_with_an_id_that_is_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "added_tokens.json", {"<extra>": "x"})
    with pytest.raises(CheckpointError, match=r"added_tokens\.json .*'<extra>' has the id 'x'"):
        read_text_assets(tmp_path, vocab_size=1000)
