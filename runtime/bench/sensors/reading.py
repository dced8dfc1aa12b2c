"""What a sensor tells about a span of time; knows no device."""

import statistics
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """None and empty are what the device does not tell, never zero.

    energy_j: joules over the span. watts, clocks_mhz: by name, each with min, avg and max. temperature_max_c: in
    degrees Celsius. memory_peak_bytes: of the device, by whatever uses it. throttled: reasons for which clocks were
    lowered; an empty tuple for none, None where the device does not tell. state: what stayed as it was, such as the
    power mode.
    """

    energy_j: float | None = None
    watts: dict[str, dict[str, float]] = field(default_factory=dict)
    clocks_mhz: dict[str, dict[str, float]] = field(default_factory=dict)
    temperature_max_c: float | None = None
    memory_peak_bytes: int | None = None
    throttled: tuple[str, ...] | None = None
    state: dict[str, Any] = field(default_factory=dict)


class Sensor(Protocol):
    """`start`, then `sample` every half second from another thread, then `stop`; `start` again forgets the span."""

    def start(self) -> None: ...

    def sample(self) -> None: ...

    def stop(self) -> Reading: ...


class AbsentError(Exception):
    """This machine has no such sensor, or does not let this user read it; the reason in a short phrase."""


@dataclass(slots=True)
class Series:
    """Samples by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float | None) -> None:
        """None is a sample that could not be taken."""
        if value is not None:
            self.values.setdefault(name, []).append(value)

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            name: {"min": min(found), "avg": statistics.fmean(found), "max": max(found)}
            for name, found in self.values.items()
        }

    def highest(self) -> float | None:
        return max((value for found in self.values.values() for value in found), default=None)
