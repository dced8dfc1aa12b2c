"""Byte-level BPE tokenizers by the name GGUF gives their pre-tokenizer; knows no file.

A vocabulary does not say how text is cut before merging: the name stands for a normaliser and a pattern.
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
class Cutting:
    """pattern: None is GPT-2's own. whole_words: a word that is in the vocabulary is not merged from its parts."""

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False


# Of Llama 3, and other names of the same that llama.cpp has.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
CUTTINGS = {
    "gpt-2": Cutting(),
    "smollm": Cutting(single_digits=True),
    **dict.fromkeys(LLAMA3, Cutting(pattern=_LLAMA3, whole_words=True)),
    "qwen2": Cutting(pattern=_QWEN2, nfc=True),
    "megrez": Cutting(pattern=_QWEN2),
    "tekken": Cutting(pattern=_TEKKEN, whole_words=True),
}
LEADS_WITH_BOS = (*LLAMA3, "tekken")
# What older files say or leave out: llama.cpp guesses and warns that the model will answer worse.
UNKNOWN = ("", "default")


def build_bpe(tokens: Sequence[str], merges: Sequence[str], *, pre: str, source: str) -> "Tokenizer":
    """merges: pairs joined by a space, as GGUF has them. Raises CheckpointError for a name not in CUTTINGS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    cutting = _cutting(pre, source)
    pairs = [_pair(merge, source) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=cutting.whole_words))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"{source} has merges that do not fit its vocabulary ({error}): rebuild it") from error
    if cutting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_steps(cutting))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cutting(pre: str, source: str) -> Cutting:
    if pre in UNKNOWN:
        raise CheckpointError(
            f"{source} does not say how its tokenizer cuts text (tokenizer.ggml.pre): take a newer conversion of the "
            "model, or its safetensors checkpoint"
        )
    if pre not in CUTTINGS:
        close = difflib.get_close_matches(pre, CUTTINGS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise CheckpointError(f"{source} has the pre-tokenizer {pre!r}{hint}: {', '.join(CUTTINGS)} are supported")
    return CUTTINGS[pre]


def _steps(cutting: Cutting) -> "list[pre_tokenizers.PreTokenizer]":
    from tokenizers import Regex, pre_tokenizers

    steps: list[pre_tokenizers.PreTokenizer] = []
    if cutting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if cutting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(cutting.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cutting.pattern is None))
    return steps


def _pair(merge: str, source: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not first or not second:
        raise CheckpointError(f"{source} has a merge {merge!r} that is not a pair: rebuild it")
    return first, second
