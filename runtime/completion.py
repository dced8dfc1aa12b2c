"""The results of a generation: pieces of text while it streams, and the complete text with its timings."""

from collections.abc import Iterable
from dataclasses import dataclass

from megrez.runtime.serving.text_stream import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token and the text that it completed: perhaps none, perhaps that of earlier tokens too.

    seconds: from the caller's request for this token until it was there; next to nothing for a drafted one.
    drafted_tokens, accepted_tokens: as in Token, of the answer so far.
    """

    text: str
    token: int
    seconds: float
    finish_reason: FinishReason | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished generation.

    token_ids: all generated tokens, including the stop token, whose text is left out. ttft_s: seconds to the first
    token. decode_tokens_per_s: of the tokens after the first; None if there are none. drafted_tokens: how many tokens
    were drafted; accepted_tokens: how many of them were generated too.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason | None
    ttft_s: float
    decode_tokens_per_s: float | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def of(cls, pieces: Iterable[Piece], *, prompt_tokens: int) -> "Completion":
        """Join one or more pieces; finish_reason is None if the stream was interrupted."""
        seen = list(pieces)
        decode_s = sum(piece.seconds for piece in seen[1:])
        return cls(
            text="".join(piece.text for piece in seen),
            token_ids=tuple(piece.token for piece in seen),
            prompt_tokens=prompt_tokens,
            output_tokens=len(seen),
            finish_reason=seen[-1].finish_reason,
            ttft_s=seen[0].seconds,
            decode_tokens_per_s=(len(seen) - 1) / decode_s if decode_s > 0 else None,
            drafted_tokens=seen[-1].drafted_tokens,
            accepted_tokens=seen[-1].accepted_tokens,
        )
