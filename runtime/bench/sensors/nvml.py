"""Energy, clocks, temperature, memory and throttling of an NVIDIA GPU, from NVML.

Not run on a GPU yet; the functions are those of nvidia-ml-py, which is not installed with this package.
"""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from megrez.runtime.bench.sensors.reading import AbsentError, Reading, Series

# nvml.h, NVML_CLOCKS_EVENT_REASON_*; other bits (idle, application clocks) are no throttling.
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}


class Nvml:
    """The first GPU that this process may use. library: stands for `pynvml`. Raises AbsentError."""

    def __init__(self, library: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            self._nvml = importlib.import_module("pynvml") if library is None else library
        except ImportError:
            raise AbsentError("nvidia-ml-py is not installed") from None
        try:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(_visible())
        except self._nvml.NVMLError as error:
            raise AbsentError(f"NVML finds no GPU ({error})") from None
        self._clock = clock
        self.start()

    def start(self) -> None:
        self._watts, self._clocks, self._temperatures, self._memory = Series(), Series(), Series(), Series()
        self._reasons: set[str] | None = None
        self._started, self._energy = self._clock(), self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def sample(self) -> None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        self._watts.add("gpu", None if milliwatts is None else milliwatts / 1000)
        for name, kind in (("sm", self._nvml.NVML_CLOCK_SM), ("memory", self._nvml.NVML_CLOCK_MEM)):
            self._clocks.add(name, self._ask("nvmlDeviceGetClockInfo", kind))
        self._temperatures.add("gpu", self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU))
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        self._memory.add("gpu", None if memory is None else memory.used)
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        if bits is not None:
            self._reasons = (self._reasons or set()) | {name for bit, name in _REASONS.items() if bits & bit}

    def stop(self) -> Reading:
        self.sample()
        watts, used = self._watts.summary(), self._memory.highest()
        return Reading(
            energy_j=self._joules(watts),
            watts=watts,
            clocks_mhz=self._clocks.summary(),
            temperature_max_c=self._temperatures.highest(),
            memory_peak_bytes=None if used is None else int(used),
            throttled=None if self._reasons is None else tuple(sorted(self._reasons)),
            state=self._state(),
        )

    def _joules(self, watts: dict[str, dict[str, float]]) -> float | None:
        """By the GPU's own counter; where it has none, mean power over the span."""
        after = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        if after is not None and self._energy is not None:
            return float(after - self._energy) / 1000
        return watts["gpu"]["avg"] * (self._clock() - self._started) if watts else None

    def _state(self) -> dict[str, Any]:
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        found = {
            "name": self._ask("nvmlDeviceGetName"),
            "power_limit_w": None if limit is None else limit / 1000,
            "sm_clock_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM),
            "memory_clock_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_MEM),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _ask(self, function: str, *args: Any) -> Any:
        """None where this GPU or this version does not have it. A function's older name may follow its name."""
        older = args[0] if args and isinstance(args[0], str) else function
        call = getattr(self._nvml, function, None) or getattr(self._nvml, older, None)
        if call is None:
            return None
        try:
            return call(self._device, *(one for one in args if not isinstance(one, str)))
        except self._nvml.NVMLError:
            return None


def _visible() -> int:
    """NVML ignores CUDA_VISIBLE_DEVICES; of a list of indices the first counts."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isdigit() else 0
