"""SentencePiece's BPE (Llama 1 and 2, TinyLlama, Mistral 7B) as a `tokenizers` tokenizer; knows no file."""

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
    """mergeable: which tokens are plain text, and therefore results of merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _merges(tokens, scores, mergeable)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prepend: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip: list[decoders.Decoder] = [decoders.Strip(content=" ", left=1)] if space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> list[tuple[str, str]]:
    """Every pair of tokens whose concatenation is a token, best score first.

    SentencePiece merges the neighbours that form the token with the best score, BPE the pair listed first: with pairs
    sorted by score the two agree.
    """
    ids = {token: i for i, token in enumerate(tokens) if mergeable[i]}
    ranked = sorted(ids, key=lambda token: (-scores[ids[token]], ids[token]))
    splits = ((token[:at], token[at:]) for token in ranked for at in range(1, len(token)))
    return [(first, second) for first, second in splits if first in ids and second in ids]
