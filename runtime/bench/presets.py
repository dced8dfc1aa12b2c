"""Named workloads, and the published figures that a run of them is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megrez.runtime.bench.settings import Load, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Figures of others, in tokens per second. device: what they were measured on."""

    device: str
    output_tokens_per_s: float
    total_tokens_per_s: float

    def ratios(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The published figures, and ours divided by them."""
        return {
            "card_device": self.device,
            "card_output_tokens_per_s": self.output_tokens_per_s,
            "card_total_tokens_per_s": self.total_tokens_per_s,
            "card_output_ratio": figures["aggregate_output_tokens_per_s"] / self.output_tokens_per_s,
            "card_total_ratio": figures["total_tokens_per_s"] / self.total_tokens_per_s,
        }


# The card's "decode speed" divides prompt and output tokens by the elapsed time; README_SPEED of the same repository
# has the output tokens alone.
MEGREZ_CARD = Published(device="one A100, BF16, vLLM", output_tokens_per_s=1159.93, total_tokens_per_s=2329.4)
PUBLISHED = {"megrez-card": MEGREZ_CARD}


def megrez_card(*, requests: int | None, warmup: int | None, repeat: int | None, seed: int) -> Load:
    """The protocol of Megrez-3B-Instruct's model card: 8 sequences at once, 128 tokens in and out, temperature 1."""
    return Load(
        requests=requests or 1000,
        concurrency=8,
        prompt_tokens=Span(128, 128),
        output_tokens=Span(128, 128),
        ignore_eos=True,
        temperature=1.0,
        warmup=8 if warmup is None else warmup,
        repeat=repeat or 1,
        seed=seed,
        preset="megrez-card",
    )
