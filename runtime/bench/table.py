"""A result of a benchmark, for people."""

from collections.abc import Callable, Mapping
from typing import Any

from megrez.runtime.bench.long_context import length_table
from megrez.runtime.bench.needle import needle_table
from megrez.runtime.bench.sweep import sweep_table

Result = Mapping[str, Any]
_WIDTH = 22
_COLUMNS = ("min", "avg", "p50", "p90", "p95", "p99", "max")


def table(result: Result) -> str:
    """Of any view."""
    tables: dict[str, Callable[[Result], str]] = {
        "latency": latency_table,
        "load": load_table,
        "sweep": sweep_table,
        "needle": needle_table,
        "long-context": length_table,
    }
    return tables[result["view"]](result)


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


def _common(result: Result) -> dict[str, str]:
    found = {}
    if "peak_rss_bytes" in result:
        found["peak memory"] = f"{result['peak_rss_bytes'] / 2**20:10.1f} MiB"
        found["bundle"] = f"{result['bundle_bytes'] / 2**20:10.1f} MiB"
    if "kv_cache_bytes" in result:
        used = f", of which {result['kv_cache_peak_share']:.0%} were used at most"
        found["KV cache"] = f"{result['kv_cache_bytes'] / 2**20:10.1f} MiB{used}"
    environment = result["environment"]
    bandwidth, share = environment.get("memory_read_bytes_per_s"), result.get("decode_bandwidth_share")
    if bandwidth is not None:
        used = "" if share is None else f", of which decode uses {share:.0%}"
        found["memory reads"] = f"{bandwidth / 1e9:10.1f} GB/s{used}"
    rate, share = environment.get("float32_flops_per_s"), result.get("prefill_compute_share")
    if rate is not None:
        used = "" if share is None else f"; prefill does {share:.0%} of it"
        found["float32 products"] = f"{rate / 1e9:10.1f} GFLOP/s{used}"
    return found | _device(result.get("device") or {})


def _device(device: Mapping[str, Any]) -> dict[str, str]:
    """A sensor that is missing is named with its reason: no energy is not zero energy."""
    found = {}
    if device.get("device_memory_peak_bytes") is not None:
        found["device memory, peak"] = f"{device['device_memory_peak_bytes'] / 2**20:10.1f} MiB"
    if device.get("energy_j") is not None:
        each = device["energy_per_output_token_j"]
        per = "" if each is None else f", {each * 1e3:.1f} mJ per output token"
        found["energy"] = f"{device['energy_j']:10.1f} J of {' and '.join(device['energy_of'])}{per}"
    elif device:
        reasons = [f"{name}: {why}" for name, why in device["sensors_absent"].items() if name != "host"]
        found["energy"] = f"{'-':>10} not told by this machine ({'; '.join(reasons)})"
    if device.get("throttled"):
        found["throttled"] = f" {', '.join(device['throttled'])}"
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
