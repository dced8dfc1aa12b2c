"""SentencePiece's BPE (Llama 1 and 2, TinyLlama, Mistral 7B) as a `tokenizers` one; knows no file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"


def build_spm(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    mergeable: Sequence[bool],
    unknown: str | None,
    space_prefix: bool,
) -> "Tokenizer":
    """mergeable: which tokens are plain text, and so come from merging others."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _merges(tokens, scores, mergeable)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spell: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spell, normalizers.Replace(" ", SPACE)])
    unspell: list[decoders.Decoder] = [decoders.Strip(content=" ", left=1)] if space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *unspell]
    )
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first.

    SentencePiece joins the neighbours that make the best-scored token; BPE joins the earliest-listed pair. With pairs
    listed by their token's score the two agree.
    """
    known = {token: i for i, token in enumerate(tokens) if mergeable[i]}
    ranked = sorted(known, key=lambda token: (-scores[known[token]], known[token]))
    splits = ((token[:at], token[at:]) for token in ranked for at in range(1, len(token)))
    return [(first, second) for first, second in splits if first in known and second in known]
