"""What a folder says of its text: stop tokens above all, and the same BOS as transformers' tokenizer gives."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text import read_text_assets
from megrez.runtime.errors import CheckpointError
from tests.models import CHAT_TEMPLATE, make_checkpoint, write_tokenizer

MEGREZ_SPECIALS = ["<|eos|>", "<|unk|>", "<|pad|>", "<|role_start|>", "<|role_end|>", "<|turn_end|>"]


def read(folder: Path, *, vocab_size: int = 1000) -> TextAssets:
    assets = read_text_assets(folder, vocab_size=vocab_size)
    assert assets is not None
    return assets


def write(folder: Path, name: str, **data: Any) -> None:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def write_megrez(folder: Path) -> None:
    """The ids of Megrez-3B-Instruct: its EOS, its end of turn, and the misspelt twin that another file names."""
    vocab = {f"t{i}": i for i in range(120000)}
    specials = {name: 120000 + i for i, name in enumerate(MEGREZ_SPECIALS)} | {"<|turn_end>": 120025}
    fillers = {f"<|filler_{i}|>": i for i in range(120006, 120025)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab | specials | fillers, unk_token="<|unk|>"))
    tokenizer.add_special_tokens([*specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", add_bos_token=False, eos_token="<|turn_end|>", pad_token="<|pad|>")
    write(folder, "special_tokens_map.json", eos_token={"content": "<|turn_end>", "lstrip": False})
    write(folder, "config.json", eos_token_id=120005, pad_token_id=120002)
    write(folder, "generation_config.json", eos_token_id=[120005, 120025])


def test_megrez_stops_on_all_three(tmp_path: Path) -> None:
    write_megrez(tmp_path)
    tokens = read(tmp_path, vocab_size=122880).tokens
    assert set(tokens.stop) == {120005, 120000, 120025}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokens.stop[0] == theirs.eos_token_id  # a template is given it as eos_token
    assert (tokens.bos, tokens.pad, tokens.add_bos) == (None, 120002, False)


def test_every_file_adds_its_stop_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)  # <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258, <|pad|> 259
    write(tmp_path, "config.json", eos_token_id=5)
    write(tmp_path, "generation_config.json", eos_token_id=[6, 7])
    write(tmp_path, "special_tokens_map.json", eos_token="<|pad|>")
    assert read(tmp_path).tokens.stop == (259, 258, 6, 7, 5, 256)


@pytest.mark.parametrize("with_decoder", [False, True])
def test_a_template_is_given_the_eos_token_that_transformers_gives_it(tmp_path: Path, with_decoder: bool) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", eos_token_id=5)
    stated = {"added_tokens_decoder": {"259": {"content": "<|pad|>", "special": True}}} if with_decoder else {}
    write(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>", **stated)
    write(tmp_path, "special_tokens_map.json", eos_token="<|pad|>")
    theirs, found = transformers.AutoTokenizer.from_pretrained(tmp_path), read(tmp_path)
    assert theirs.eos_token == ("<|im_end|>" if with_decoder else "<|pad|>")
    assert (found.eos_token, found.tokens.stop[0]) == (theirs.eos_token, theirs.eos_token_id)
    assert set(found.tokens.stop) == {258, 259, 5, 256}


def test_a_stop_id_outside_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", eos_token_id=5000)
    assert read(tmp_path, vocab_size=320).tokens.stop == (258, 256)


def test_a_bos_or_pad_that_was_never_given_to_the_model_is_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|beyond|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    beyond = tokenizer.token_to_id("<|beyond|>")
    write(tmp_path, "tokenizer_config.json", bos_token="<|beyond|>", pad_token="<|beyond|>", eos_token="<|im_end|>")
    with_it, without = (read(tmp_path, vocab_size=size).tokens for size in (beyond + 1, beyond))
    assert (with_it.bos, with_it.pad) == (beyond, beyond)
    assert (without.bos, without.pad, without.add_bos) == (None, None, False)


def test_a_token_without_an_embedding_is_refused_where_transformers_fails(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, vocab=273)
    write(tmp_path, "added_tokens.json", **{"<extra>": 273, "<more>": 274})
    ids = transformers.AutoTokenizer.from_pretrained(folder)("a<extra>", return_tensors="pt").input_ids
    with pytest.raises(IndexError):
        transformers.AutoModelForCausalLM.from_pretrained(folder)(ids)
    told = r"no embedding \(vocab_size is 273\): '<extra>' \(273\), '<more>' \(274\): remove them"
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path, vocab_size=273)
    assert read(tmp_path, vocab_size=275).tokens.stop[0] == 258


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            b"{% if %}",
            r"the chat template is not valid Jinja in line 1 \(.*\): correct chat_template.jinja, or remove it",
        ),
        (b"caf\xe9", "chat_template.jinja is not UTF-8 text .*: convert it"),
    ],
)
def test_a_template_that_cannot_be_used_is_told_before_a_bundle_has_it(
    tmp_path: Path, template: bytes, told: str
) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(template)
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path)


def test_no_stop_token_at_all_is_an_error(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no stop token is known"):
        read(tmp_path)


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("flag", [None, True, False])
def test_add_bos(tmp_path: Path, processor: bool, flag: bool | None) -> None:
    write_tokenizer(tmp_path)
    stated = {} if flag is None else {"add_bos_token": flag}
    write(tmp_path, "tokenizer_config.json", bos_token="<|endoftext|>", eos_token="<|im_end|>", **stated)
    if processor:
        tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
        )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    assets = read(tmp_path)
    assert (assets.tokens.bos, assets.bos_token) == (256, "<|endoftext|>")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs("a").input_ids[0] == 256) is assets.tokens.add_bos is processor


def test_the_chat_template_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    def theirs() -> Any:
        return transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template

    write_tokenizer(tmp_path)
    write(tmp_path, "chat_template.json", chat_template="from json")
    assert read(tmp_path).chat_template == theirs() == CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert read(tmp_path).chat_template == theirs() == "from jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("with tools")
    assert read(tmp_path).chat_template == theirs()["default"] == "from jinja"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"no chat template is named 'default', found \['tools'\]"):
        read(tmp_path)


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>", chat_template=named)
    assert read(tmp_path).chat_template == "D"
    write(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>", chat_template=named[:1])
    with pytest.raises(CheckpointError, match=r"no chat template is named 'default', found \['tool_use'\]"):
        read(tmp_path)


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    assets = read(tmp_path)
    assert assets.chat_template is None
    assert (assets.bos_token, assets.eos_token, assets.tokens.bos) == (None, "<|im_end|>", None)


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    assert read_text_assets(tmp_path, vocab_size=1000) is None


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        read(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        read(tmp_path)


def write_tekken(folder: Path) -> None:
    """Mistral's own format: 256 bytes and three merges, after eight special tokens."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(token).decode()} for i, token in enumerate(tokens)]
    specials = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[A]", "[B]")
    write(
        folder,
        "tekken.json",
        config={"pattern": r" ?\p{L}+|\s+", "default_vocab_size": 267, "default_num_special_tokens": 8},
        vocab=vocab,
        special_tokens=[{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(specials)],
    )
    write(folder, "config.json", model_type="mistral", eos_token_id=2)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_a_tokenizer_in_another_format_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    told = f"has a tokenizer only as {name}, and tokenizer.json is needed: convert it in Python with  from transformers"
    with pytest.raises(CheckpointError, match=re.escape(told)):
        read(tmp_path)


def test_the_conversion_that_the_error_names_makes_a_tekken_tokenizer_readable(tmp_path: Path) -> None:
    write_tekken(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        read(tmp_path)
    exec(str(refused.value).partition("in Python with  ")[2], {})
    assets = read(tmp_path, vocab_size=267)
    assert (assets.tokens.stop, assets.bos_token) == ((2,), "<s>")
    # [INST] 3; bytes from 8 on; "the" 265, " the" 266.
    ours = tokenizers.Tokenizer.from_buffer(assets.tokenizer_json)
    assert ours.encode("the[INST] the!").ids == [265, 3, 266, 8 + ord("!")]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("the[INST] the!").input_ids == [265, 3, 266, 41]
