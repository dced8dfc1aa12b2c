"""Tokenizers rebuilt from GGUF metadata cut text as the originals do."""

import itertools
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import pre_tokenizers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.gguf.tokenizer import read_gguf_text
from megrez.compile.checkpoint.gguf.tokenizer_bpe import PRE_TOKENIZERS
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.runtime.errors import CheckpointError
from megrez.runtime.manifest import SamplingDefaults
from tests.gguf_models import make_gguf
from tests.models import CHAT_TEMPLATE, make_checkpoint

AWKWARD = [
    "",
    " leading",
    "trailing ",
    "two  spaces\n\n\tand tabs\r\n",
    "héllo wörld 你好，世界 🙂🙂",
    "I'm they'LL don't 'S",
    "1234 567,89 x12y",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def rebuilt(assets: TextAssets | None) -> tokenizers.Tokenizer:
    assert assets is not None
    return tokenizers.Tokenizer.from_buffer(assets.tokenizer_json)


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def pieces(assets: TextAssets | None, text: str) -> list[str]:
    return list(rebuilt(assets).encode(text, add_special_tokens=False).tokens)


def test_a_byte_level_tokenizer_survives_the_round_trip(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    assets = open_checkpoint(str(make_gguf(tmp_path / "t.gguf", folder))).text
    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in AWKWARD:
        assert ids(rebuilt(assets), text) == ids(original, text)
        assert rebuilt(assets).decode(ids(original, text), skip_special_tokens=False) == text
    assert assets is not None
    assert assets.chat_template == CHAT_TEMPLATE
    assert assets.eos_token == "<|im_end|>"
    assert (assets.tokens.bos, assets.tokens.pad, assets.tokens.stop) == (None, 259, (258, 256))
    assert assets.sampling == SamplingDefaults(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


def test_a_file_may_recommend_a_sampling(tmp_path: Path) -> None:
    stated = {"temp": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "mirostat": 2, "penalty_last_n": 64}
    metadata = {f"general.sampling.{key}": value for key, value in stated.items()}
    assets = open_checkpoint(
        str(make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), metadata=metadata))
    ).text
    assert assets is not None
    assert assets.sampling == SamplingDefaults(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.0)
    assert assets.ignored == ("general.sampling.mirostat 2",)


def test_a_file_without_vocabulary_has_no_text(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf"), text=False)
    assert open_checkpoint(str(path)).text is None


def byte_level(pre: str, *, more: Sequence[str] = (), merges: Sequence[str] = (), **facts: Any) -> TextAssets | None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *more, "<|end|>", "<tool>"]
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": list(merges),
        "token_type": [1] * (len(tokens) - 2) + [3, 4],
        "eos_token_id": len(tokens) - 2,
        **facts,
    }
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return read_gguf_text(named, vocab_size=1000, source="t.gguf")


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 1234 x", ["it", "'s", "Ġ1234", "Ġx"]),
        ("gpt-2", "IT'S 12", ["IT", "'", "S", "Ġ12"]),
        ("smollm", "a 123", ["a", "Ġ", "1", "2", "3"]),
        ("llama-bpe", "IT'S 12345 (x)\n", ["IT", "'S", "Ġ", "123", "45", "Ġ(", "x", ")Ċ"]),
        ("llama-v3", "a 12345", ["a", "Ġ", "123", "45"]),
        ("qwen2", "it's 123\n\n", ["it", "'s", "Ġ", "1", "2", "3", "ĊĊ"]),
        ("megrez", "it's 123\n\n", ["it", "'s", "Ġ", "1", "2", "3", "ĊĊ"]),
        ("tekken", "camelCase 12/\n", ["camel", "Case", "Ġ", "1", "2", "/Ċ"]),
    ],
)
def test_each_pre_tokenizer_cuts_in_its_own_way(pre: str, text: str, words: list[str]) -> None:
    cut = rebuilt(byte_level(pre)).pre_tokenizer.pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


def test_only_qwen2_composes_characters() -> None:
    decomposed = "e\u0301"
    for pre in PRE_TOKENIZERS:
        assert (len(pieces(byte_level(pre), decomposed)) == 2) == (pre == "qwen2")


def test_whole_words_beat_merges_where_the_name_says_so() -> None:
    for pre, whole in (("llama-bpe", True), ("tekken", True), ("qwen2", False)):
        assets = byte_level(pre, more=["abc"])
        assert pieces(assets, "abc") == (["abc"] if whole else ["a", "b", "c"])


def test_bos_leads_where_the_file_or_the_name_says_so() -> None:
    def leads(pre: str, **facts: Any) -> bool:
        assets = byte_level(pre, bos_token_id=0, **facts)
        assert assets is not None
        return assets.tokens.add_bos

    assert leads("llama-bpe") and leads("llama3") and leads("llama-v3")
    assert not leads("qwen2")
    assert leads("qwen2", add_bos_token=True)
    assert not leads("llama-bpe", add_bos_token=False)


def test_control_tokens_are_special_and_user_tokens_are_not() -> None:
    tokenizer = rebuilt(byte_level("gpt-2"))
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {"<|end|>": True, "<tool>": False}
    assert pieces(byte_level("gpt-2"), "a<tool><|end|>") == ["a", "<tool>", "<|end|>"]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"pre": "deepseek-coder"}, "pre-tokenizer 'deepseek-coder'"),
        ({"pre": "default"}, "does not state its pre-tokenizer (tokenizer.ggml.pre): take a newer"),
        ({"merges": ["ab"]}, "a merge 'ab' that is not a pair"),
        ({"merges": ["a zz"]}, "merges that do not fit its vocabulary"),
        ({"tokens": []}, "without tokens"),
    ],
)
def test_refuses(facts: dict[str, Any], told: str) -> None:
    given = {"pre": "gpt-2", **facts}
    with pytest.raises(CheckpointError) as caught:
        byte_level(**given)
    assert told in str(caught.value)
    assert "t.gguf" in str(caught.value)


SPM_WORDS = [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "he",
    "ll",
    "lo",
    "hell",
    "hello",
    "▁hello",
    "wo",
    "▁wo",
    "▁w",
    "ld",
]


def sentencepiece(**facts: Any) -> TextAssets | None:
    by_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *by_bytes, *SPM_WORDS]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * (3 + 256) + [-float(i) for i in range(len(SPM_WORDS))],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(SPM_WORDS),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **facts,
    }
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return read_gguf_text(named, vocab_size=1000, source="t.gguf")


def best_scored(text: str) -> list[str]:
    """SentencePiece's own rule, done naively: join the neighbours whose token has the best score, leftmost first."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [
            (SPM_WORDS.index(first + second), at)
            for at, (first, second) in enumerate(itertools.pairwise(parts))
            if first + second in SPM_WORDS
        ]
        if not joins:
            break
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [piece for part in parts for piece in (by_bytes(part) if part not in SPM_WORDS else [part])]


def by_bytes(part: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in part.encode()]


@pytest.mark.parametrize("text", ["hello world", "  hello  ", "lllhello", "wold", "hé é", "你好 hello", "hellohello"])
def test_sentencepiece_joins_the_best_scored_first(text: str) -> None:
    assets = sentencepiece()
    assert pieces(assets, text) == best_scored(text)
    assert rebuilt(assets).decode(ids(rebuilt(assets), text)) == text
    assert assets is not None
    assert (assets.tokens.bos, assets.tokens.stop, assets.tokens.add_bos) == (1, (2,), True)


def test_sentencepiece_without_a_leading_space() -> None:
    assert pieces(sentencepiece(add_space_prefix=False), "hello") == ["hello"]
    assert pieces(sentencepiece(), "hello") == ["▁hello"]
    assert pieces(sentencepiece(), "hello</s>hello") == ["▁hello", "</s>", "▁hello"]


@pytest.mark.slow
def test_smollm2_encodes_as_its_own_tokenizer(smollm2_gguf: Path) -> None:
    path = smollm2_gguf
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    # transformers' converter forgets that SmolLM2 cuts numbers into digits.
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = rebuilt(open_checkpoint(str(path)).text)
    prose = "\n".join(pydoc_data.topics.topics.values())
    for text in (*AWKWARD, *(prose[at : at + 2000] for at in range(0, len(prose), 7000))):
        assert ids(ours, text) == ids(theirs, text)
        assert ours.decode(ids(ours, text), skip_special_tokens=False) == text
