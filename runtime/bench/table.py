"""A result of a benchmark, for people."""

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
_WIDTH = 22
_COLUMNS = ("min", "avg", "p50", "p90", "p95", "p99", "max")


def table(result: Result) -> str:
    """Of either view."""
    return latency_table(result) if result["view"] == "latency" else load_table(result)


def latency_table(result: Result) -> str:
    rows = {
        "prefill": f"{result['prefill_tokens_per_s']:10.1f} tokens/s{_spread(result, 'prefill_tokens_per_s')}",
        "decode": f"{result['decode_tokens_per_s']:10.1f} tokens/s{_spread(result, 'decode_tokens_per_s')}",
        "first token": f"{result['ttft_s'] * 1e3:10.1f} ms{_spread(result, 'ttft_s')}",
        **_common(result),
        "threads": f"{result['threads']:10d}",
        "slots": f"{result['slots']:10d}",
    }
    return _lines(rows)


def load_table(result: Result) -> str:
    name = "aggregate_output_tokens_per_s"
    per_user = result["output_tokens_per_s_per_user"]
    rows = {
        "output": f"{result[name]:10.1f} tokens/s{_spread(result, name)}",
        "prompt and output": f"{result['total_tokens_per_s']:10.1f} tokens/s",
        "output per stream": f"{_number(per_user, 1):>10} tokens/s",
        "requests": f"{result['requests_per_s']:10.3f} /s",
        "completed, failed": f"{result['completed']:10d} {result['failed']}",
        "tokens in, out": f"{result['prompt_tokens']:10d} {result['output_tokens']}",
        "prompt tokens cached": f"{result['cached_prompt_tokens']:10d}",
        **_common(result),
        **_drafts(result),
        **_card(result),
    }
    if result["stopped"]:
        rows["stopped"] = f" {result['stopped']}"
    lines = [_lines(rows), "", f"{'ms':<{_WIDTH}}" + "".join(f"{one:>10}" for one in _COLUMNS)]
    for label in ("ttft", "itl", "tpot", "latency"):
        values = (result[f"{label}_{column}_s"] for column in _COLUMNS)
        cells = (_number(None if value is None else value * 1e3, 2) for value in values)
        lines.append(f"{label:<{_WIDTH}}" + "".join(f"{cell:>10}" for cell in cells))
    lines += [f"failed {count} times: {error}" for error, count in result["errors"].items()]
    return "\n".join(lines)


def chunk_warning(result: Result) -> str | None:
    """One line where a server's chunks are not its tokens, which its ITL is then not of either."""
    chunks, tokens = result.get("chunks", 0), result.get("output_tokens", 0)
    if result.get("client") != "http" or not tokens or abs(chunks / tokens - 1) < 0.1:
        return None
    return f"the server sent {tokens} tokens in {chunks} chunks: ITL is between chunks, TPOT is per token"


def _common(result: Result) -> dict[str, str]:
    found = {}
    if "peak_rss_bytes" in result:
        found["peak memory"] = f"{result['peak_rss_bytes'] / 2**20:10.1f} MiB"
        found["bundle"] = f"{result['bundle_bytes'] / 2**20:10.1f} MiB"
    bandwidth, share = result["environment"].get("memory_read_bytes_per_s"), result.get("decode_bandwidth_share")
    if bandwidth is not None:
        used = "" if share is None else f", of which decode uses {share:.0%}"
        found["memory reads"] = f"{bandwidth / 1e9:10.1f} GB/s{used}"
    return found


def _drafts(result: Result) -> dict[str, str]:
    drafted, accepted = result.get("drafted_tokens", 0), result.get("accepted_tokens", 0)
    return {"drafted, accepted": f"{drafted:10d} {accepted} ({accepted / drafted:.0%})"} if drafted else {}


def _card(result: Result) -> dict[str, str]:
    if "card_device" not in result:
        return {}
    device = result["card_device"]
    return {
        "card, output": f"{result['card_output_tokens_per_s']:10.1f} tokens/s on {device}; "
        f"ours is {result['card_output_ratio']:.4f} of it",
        "card, both": f"{result['card_total_tokens_per_s']:10.1f} tokens/s on {device}; "
        f"ours is {result['card_total_ratio']:.4f} of it",
    }


def _spread(result: Result, name: str) -> str:
    found = result["spread"].get(name)
    return "" if found is None else f", spread {found:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _lines(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in rows.items())
