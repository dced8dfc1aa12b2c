"""All sensors of this machine, read while a benchmark measures."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from megrez.runtime.bench.sensors.host import Host
from megrez.runtime.bench.sensors.jetson import Jetson
from megrez.runtime.bench.sensors.nvml import Nvml
from megrez.runtime.bench.sensors.rapl import Rapl
from megrez.runtime.bench.sensors.reading import AbsentError, Reading, Sensor

_INTERVAL_S = 0.5
KINDS: Mapping[str, Callable[[], Sensor]] = {"host": Host, "rapl": Rapl, "nvml": Nvml, "tegrastats": Jetson}
# Those whose energy is of different things, which together are what the run took; tegrastats' has all of them.
_ADDED = ("rapl", "nvml")


class Meter:
    """kinds: by name, what finds a sensor or raises AbsentError."""

    def __init__(self, kinds: Mapping[str, Callable[[], Sensor]] = KINDS) -> None:
        self.absent: dict[str, str] = {}
        self._sensors: dict[str, Sensor] = {}
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        for name, find in kinds.items():
            try:
                self._sensors[name] = find()
            except AbsentError as error:
                self.absent[name] = str(error)

    def start(self) -> None:
        """Begin a span; one that has begun is forgotten."""
        self._join()
        for name in list(self._sensors):
            self._safely(name, lambda sensor: sensor.start())
        self._ended.clear()
        self._thread = threading.Thread(target=self._sample, name="sensors", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Reading]:
        """By sensor; those that failed meanwhile are in `absent`. Empty where no span has begun."""
        if self._thread is None:
            return {}
        self._join()
        found = {name: self._safely(name, lambda sensor: sensor.stop()) for name in list(self._sensors)}
        return {name: one for name, one in found.items() if isinstance(one, Reading)}

    def _sample(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            for name in list(self._sensors):
                self._safely(name, lambda sensor: sensor.sample())

    def _join(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _safely(self, name: str, ask: Callable[[Sensor], object]) -> object:
        """A sensor that stops answering must not end a measurement."""
        try:
            return ask(self._sensors[name])
        except (OSError, ValueError) as error:
            self.absent[name] = f"it stopped answering ({error})"
            del self._sensors[name]
            return None


def describe(readings: Mapping[str, Reading], absent: Mapping[str, str], output_tokens: int) -> dict[str, Any]:
    """For JSON: energy in joules, what it covers, joules per output token, throttling, and every reading.

    energy_j: None where no sensor tells; `absent` then has the reasons. throttled: None where no sensor tells.
    """
    whole = readings.get("tegrastats")
    names = ["tegrastats"] if whole is not None and whole.energy_j is not None else [*_ADDED]
    parts = {name: readings[name].energy_j for name in names if name in readings}
    told = {name: value for name, value in parts.items() if value is not None}
    energy = sum(told.values()) if told else None
    reasons = [one.throttled for one in readings.values() if one.throttled is not None]
    peaks = [one.memory_peak_bytes for one in readings.values() if one.memory_peak_bytes is not None]
    return {
        "energy_j": energy,
        "energy_of": list(told),
        "energy_per_output_token_j": energy / output_tokens if energy is not None and output_tokens else None,
        "throttled": sorted({one for found in reasons for one in found}) if reasons else None,
        "device_memory_peak_bytes": max(peaks, default=None),
        "sensors": {name: asdict(one) for name, one in readings.items()},
        "sensors_absent": dict(absent),
    }
