"""A folder's text becomes the ids that transformers' AutoTokenizer makes of it, whichever class that takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text import read_text_assets
from megrez.compile.checkpoint.tokenizer_class import takes_the_file_as_it_is
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import CheckpointError
from megrez.runtime.text import Text
from tests.models import write_tokenizer

TEXTS = (
    *("the land", " the land", "  two  spaces ", "lines\n\nand\r\n\ttabs", "123456 7890", "Don't we'll THEY'RE", ""),
    *("月がきれい。你好,世界", "e\u0301 \u212b ﬁ", "👩‍👩‍👧 \U0001f600", "a<s>the</s> and"),
    *("<|im_start|>user\nthe<|im_end|>the", "the <|endoftext|>the", "▁the ▁", "naïve ÀÉ", "\x00\x7f\u200b\ufeff"),
)
CONVERSATION = [
    {"role": "user", "content": " Who's there?\n"},
    {"role": "assistant", "content": "It's 你 <|im_end|> 12."},
    {"role": "user", "content": "e\u0301\n\n"},
]
CLASSES = (
    *("LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer"),
    *("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "CohereTokenizerFast", "GemmaTokenizer"),
    *("CodeLlamaTokenizer", "NoSuchTokenizer", None),
)
NEED_UNK = ("GemmaTokenizer", "CodeLlamaTokenizer")  # fail on other vocabularies, in transformers too
CASES = [
    *(("byte level", name) for name in CLASSES if name not in NEED_UNK),
    *(("sentencepiece", name) for name in CLASSES),
]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "seed_oss")


def write(folder: Path, name: str, data: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **data}))


def write_sentencepiece(folder: Path, *, normalizer: bool = True) -> None:
    """Bytes, characters and merges as a converted SentencePiece model has them, spaces as ▁, and a leading BOS."""
    words = ["▁", *"thenadlousrwi", "th", "the", "▁the", "an", "and", "▁and", "▁▁", "ll"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("an", "d"), ("▁", "and"), ("▁", "▁"), ("l", "l")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    if normalizer:
        steps = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [("Replace", ("▁", " ")), ("ByteFallback", ()), ("Fuse", ()), ("Strip", (" ", 1, 0))]
    tokenizer.decoder = tokenizers.decoders.Sequence([getattr(tokenizers.decoders, n)(*a) for n, a in steps])
    tokenizer.add_special_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in pieces[:3]])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def read(folder: Path) -> TextAssets:
    assets = read_text_assets(folder, vocab_size=1000)
    assert assets is not None
    return assets


def assert_equal(folder: Path) -> None:
    """Ids with and without special tokens, their text, and a conversation as the runtime renders and reads it."""
    theirs, assets = transformers.AutoTokenizer.from_pretrained(folder), read(folder)
    ours = Text(tokenizers.Tokenizer.from_buffer(assets.tokenizer_json), assets.tokens)
    for text in TEXTS:
        plain = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_bos=False) == plain
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.decode(plain) == theirs.decode(plain)
    words = {"bos_token": assets.tokens.bos, "eos_token": assets.tokens.stop[0], "pad_token": assets.tokens.pad}
    spelled = {name: word for name, token in words.items() if (word := ours.token_text(token)) is not None}
    assert assets.chat_template is not None
    prompt = ChatTemplate(assets.chat_template, spelled).render(CONVERSATION)
    assert prompt == theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert ours.encode(prompt, add_bos=False) == ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("spelling", "name"), CASES)
def test_ids_are_those_of_transformers(tmp_path: Path, family: str, name: str | None, spelling: str) -> None:
    write_tokenizer(tmp_path) if spelling == "byte level" else write_sentencepiece(tmp_path)
    write(tmp_path, "config.json", {"model_type": family, "vocab_size": 1000})
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": name})
    assert_equal(tmp_path)


def ids_of(tokenizer_json: bytes, text: str) -> list[int]:
    return list(tokenizers.Tokenizer.from_buffer(tokenizer_json).encode(text, add_special_tokens=False).ids)


def file_ids(folder: Path, text: str) -> list[int]:
    return ids_of((folder / "tokenizer.json").read_bytes(), text)


def our_ids(folder: Path, text: str) -> list[int]:
    return ids_of(read(folder).tokenizer_json, text)


STATED: dict[str, dict[str, Any]] = {
    "legacy": {"legacy": True},
    "not legacy": {"legacy": False},
    "a space before the text": {"legacy": False, "add_prefix_space": True},
    "no space before the text": {"add_prefix_space": False},
    "tokens with flags": {
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True, "rstrip": True},
            "400": {"content": "<extra>", "special": False, "lstrip": True},
            "300": {"content": "and", "special": True},
        }
    },
    "tokens by name": {"image_token": "<img>", "extra_special_tokens": ["<extra>", "the"], "pad_token": "</s>"},
    "no special tokens": {"bos_token": None, "unk_token": None},
    "what a class does not know": {"clean_up_tokenization_spaces": True, "use_default_system_prompt": True, "spm": 1},
}


@pytest.mark.parametrize("name", ["LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("stated", STATED.values(), ids=STATED.keys())
@pytest.mark.parametrize("normalizer", [False, True])
def test_what_a_class_takes_from_tokenizer_config(
    tmp_path: Path, name: str, stated: dict[str, Any], normalizer: bool
) -> None:
    write_sentencepiece(tmp_path, normalizer=normalizer)
    write(tmp_path, "config.json", {"model_type": "llama"})
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": name, "chat_template": template, **stated})
    assert_equal(tmp_path)


def test_classes_change_the_ids_of_tokenizer_json(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama"})
    after_a_token, composed = "<s>the", "e\u0301the"
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert our_ids(tmp_path, after_a_token) != file_ids(tmp_path, after_a_token)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert our_ids(tmp_path, after_a_token) == file_ids(tmp_path, after_a_token)
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", {"model_type": "qwen2"})
    assert our_ids(tmp_path, composed) != file_ids(tmp_path, composed)


def test_the_class_of_config_json_counts_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"})
    assert_equal(tmp_path)
    assert our_ids(tmp_path, "<s>the") != file_ids(tmp_path, "<s>the")


def test_another_version_of_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, "tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]})
    changed = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    changed.normalizer = tokenizers.normalizers.Lowercase()
    changed.save(str(tmp_path / "tokenizer.4.0.0.json"))
    assert_equal(tmp_path)
    assert our_ids(tmp_path, "THE") == file_ids(tmp_path, "the")


def test_code_of_the_folder_is_never_run(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama"})
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    named = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    write(tmp_path, "tokenizer_config.json", named)
    with pytest.raises(CheckpointError, match=r"transformers cannot load the tokenizer .*auto_map names is never run"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()
    write(tmp_path, "config.json", {"model_type": "qwen3"})
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    assert read(tmp_path).tokens.stop[0] == 258
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_another_library_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    assert type(transformers.AutoTokenizer.from_pretrained(tmp_path)).__name__ == "ByT5Tokenizer"
    with pytest.raises(CheckpointError, match="ByT5Tokenizer, which the tokenizers library cannot run"):
        read(tmp_path)


def test_byte_level_files_of_llama_need_no_transformers() -> None:
    file, llama, named = b'{"pre_tokenizer": {"type": "ByteLevel"}}', {"model_type": "llama"}, "LlamaTokenizerFast"
    assert takes_the_file_as_it_is(file, {"tokenizer_class": named}, llama)
    assert not takes_the_file_as_it_is(b"{}", {"tokenizer_class": named}, llama)


def test_the_network_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, "config.json", {"model_type": "qwen2"})
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *where, **_: asked.append(where))
    monkeypatch.setattr("socket.socket.connect", lambda _, where: asked.append(where))
    assert read(tmp_path).tokens.stop[0] == 258
    assert asked == []
