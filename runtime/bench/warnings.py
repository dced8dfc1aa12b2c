"""What is wrong with a result: repetitions that differ too much, lowered clocks, chunks that are not tokens."""

from collections.abc import Mapping
from typing import Any

from megrez.runtime.bench.figures import spread_warning

Result = Mapping[str, Any]


def warnings_of(result: Result) -> list[str]:
    """One line each."""
    found = (
        spread_warning(result["spread"], result["environment"]["load_average_before"]),
        _throttling(result),
        _chunks(result),
    )
    return [one for one in found if one is not None]


def _throttling(result: Result) -> str | None:
    found = [result, *result.get("points", ())]
    reasons = {reason for one in found for reason in (one.get("device") or {}).get("throttled") or ()}
    if not reasons:
        return None
    return (
        f"clocks were lowered during the run ({', '.join(sorted(reasons))}): cool the device, or raise its power limit"
    )


def _chunks(result: Result) -> str | None:
    """A server's chunks that are not its tokens, which its ITL is then not of either."""
    chunks, tokens = result.get("chunks", 0), result.get("output_tokens", 0)
    if result.get("client") != "http" or not tokens or abs(chunks / tokens - 1) < 0.1:
        return None
    return f"the server sent {tokens} tokens in {chunks} chunks: ITL is between chunks, TPOT is per token"
