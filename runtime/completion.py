"""What a caller sees of a generation: pieces of text as they come, and the whole with its timings."""

from collections.abc import Iterable
from dataclasses import dataclass

from megrez.runtime.serving.text_stream import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token and the text that became certain with it, which may be none, or that of earlier tokens too."""

    text: str
    token: int
    seconds: float
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished generation.

    token_ids: all that was generated, the stop token included, whose text is not. ttft_s: seconds to the first token.
    decode_tokens_per_s: of the tokens after the first; None where there are none.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason | None
    ttft_s: float
    decode_tokens_per_s: float | None

    @classmethod
    def of(cls, pieces: Iterable[Piece], *, prompt_tokens: int) -> "Completion":
        """Sum up at least one piece; finish_reason is None where the stream was left before its end."""
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
        )
