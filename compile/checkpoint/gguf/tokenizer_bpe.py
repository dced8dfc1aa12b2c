"""Byte-level BPE tokenizers by GGUF's name for their pre-tokenizer; knows no file.

The name stands for a normaliser and the pattern that splits text before merging.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megrez.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """pattern: None for GPT-2's. whole_words: a word in the vocabulary is a token without merging."""

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False


# Llama 3's, and llama.cpp's other names for it.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    **dict.fromkeys(LLAMA3, PreTokenizer(pattern=_LLAMA3, whole_words=True)),
    "qwen2": PreTokenizer(pattern=_QWEN2, nfc=True),
    "megrez": PreTokenizer(pattern=_QWEN2),
    "tekken": PreTokenizer(pattern=_TEKKEN, whole_words=True),
}
LEADS_WITH_BOS = (*LLAMA3, "tekken")
# In older files, for which llama.cpp guesses and warns of worse answers.
UNKNOWN = ("", "default")


def build_bpe(tokens: Sequence[str], merges: Sequence[str], *, pre: str, source: str) -> "Tokenizer":
    """merges: pairs joined by a space, as GGUF has them. Raises CheckpointError for a name not in PRE_TOKENIZERS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre_tokenizer = _pre_tokenizer(pre, source)
    pairs = [_pair(merge, source) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre_tokenizer.whole_words))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"{source} has merges that do not fit its vocabulary ({error}): rebuild it") from error
    if pre_tokenizer.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_steps(pre_tokenizer))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(pre: str, source: str) -> PreTokenizer:
    if pre in UNKNOWN:
        raise CheckpointError(
            f"{source} does not state its pre-tokenizer (tokenizer.ggml.pre): take a newer conversion of the "
            "model, or its safetensors checkpoint"
        )
    if pre not in PRE_TOKENIZERS:
        close = difflib.get_close_matches(pre, PRE_TOKENIZERS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise CheckpointError(
            f"{source} has the pre-tokenizer {pre!r}{hint}: {', '.join(PRE_TOKENIZERS)} are supported"
        )
    return PRE_TOKENIZERS[pre]


def _steps(pre_tokenizer: PreTokenizer) -> "list[pre_tokenizers.PreTokenizer]":
    from tokenizers import Regex, pre_tokenizers

    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre_tokenizer.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre_tokenizer.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre_tokenizer.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer.pattern is None))
    return steps


def _pair(merge: str, source: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not first or not second:
        raise CheckpointError(f"{source} has a merge {merge!r} that is not a pair: rebuild it")
    return first, second
