"""What every view of the benchmark states beside its own figures: device, energy, memory, and shares of its limits."""

from typing import Any

from megrez.runtime.bench.environment import load_average, peak_rss_bytes
from megrez.runtime.bench.local import Steps
from megrez.runtime.bench.peaks import Peaks, measure_peaks
from megrez.runtime.bench.sensors.meter import Meter, describe
from megrez.runtime.bench.work import describe_work
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Session

Result = dict[str, Any]


def add_host(result: Result, bundle: Bundle) -> None:
    """Of this process."""
    result |= {"peak_rss_bytes": peak_rss_bytes(), "bundle_bytes": bundle.size}


def add_steps(result: Result, bundle: Bundle, steps: Steps, session: tuple[int, int]) -> None:
    """The engine's steps, and how full its KV cache was. session: its slots and their capacity in tokens."""
    slots, capacity = session
    decode = steps.decode
    per_token = bundle.manifest.kv_cache.bytes_per_token
    result |= {
        "decode_step_s": decode.seconds / decode.steps if decode.steps else None,
        "sequences_per_decode_step": decode.sequences / decode.steps if decode.steps else None,
        "engine_seconds": decode.seconds + steps.prefill.seconds,
        "kv_cache_bytes": slots * capacity * per_token,
        "kv_cache_peak_tokens": steps.busy_tokens,
        "kv_cache_peak_share": steps.busy_tokens / (slots * capacity),
    }


def add_limits(
    result: Result, environment: Result, *, engine: str | None, threads: int, bundle: Bundle | None, steps: Steps | None
) -> None:
    """Measures bandwidth and arithmetic of this machine, after the run; `engine` None where another machine ran.

    steps: None where they are not known, as those of a server.
    """
    peaks = Peaks() if engine is None else measure_peaks(engine, threads)
    environment |= {
        "load_average_after": load_average(),
        "memory_read_bytes_per_s": peaks.read_bytes_per_s,
        "float32_flops_per_s": peaks.flops_per_s,
    }
    if bundle is None or steps is None:
        work: Result = {}
    else:
        work = describe_work(bundle.manifest, {"decode": steps.decode, "prefill": steps.prefill}, peaks)
    result["work"] = work
    result["decode_bandwidth_share"] = (work.get("decode") or {}).get("bandwidth_share")
    result["prefill_compute_share"] = (work.get("prefill") or {}).get("compute_share")
    result["environment"] = environment


def add_session(
    result: Result, environment: Result, bundle: Bundle, steps: Steps, session: tuple[int, int], *, threads: int
) -> None:
    """All of the above, for a session of this process; see `add_steps`."""
    add_host(result, bundle)
    add_steps(result, bundle, steps, session)
    add_limits(result, environment, engine=bundle.manifest.engine, threads=threads, bundle=bundle, steps=steps)


def size_of(session: Session) -> tuple[int, int]:
    """To be asked before the session is closed."""
    return session.slots, session.capacity


def stop_meter(meter: Meter, result: Result, output_tokens: int) -> None:
    """End the span; adds energy, clocks and throttling."""
    readings = meter.stop()
    result["device"] = describe(readings, meter.absent, output_tokens)
