"""Clocks, governors, temperatures and thermal throttling of the CPU, from Linux's /sys and /proc."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from megrez.runtime.bench.sensors.reading import AbsentError, Reading, Series

# Counters that go up when clocks are lowered: x86's throttling, Jetson's over-current events.
_COUNTERS = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)
_COOLED = re.compile(r"cpufreq|devfreq|throttle|gpu", re.IGNORECASE)


class Host:
    """root: the parent of /sys and /proc. Raises AbsentError where none of these is told."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._counters = [path for pattern in _COUNTERS for path in root.glob(pattern) if _read(path) is not None]
        devices = root.glob("sys/class/thermal/cooling_device*")
        self._cooling = [one for one in devices if _COOLED.search(_text(one / "type") or "")]
        self.start()
        self.sample()
        if not (self._clocks.values or self._temperatures.values or self._counters or self._cooling):
            raise AbsentError("Linux tells neither clocks nor temperatures here")

    def start(self) -> None:
        self._clocks, self._temperatures = Series(), Series()
        self._cooled: set[str] = set()
        self._before = {path: _read(path) for path in self._counters}

    def sample(self) -> None:
        clocks = list(self._megahertz())
        if clocks:
            self._clocks.add("cpu", sum(clocks) / len(clocks))
        for zone in self._root.glob("sys/class/thermal/thermal_zone*"):
            value = _read(zone / "temp")
            if value is not None and value > 0:  # zones that are switched off tell less
                self._temperatures.add(_text(zone / "type") or zone.name, value / 1000)
        self._cooled |= {_text(one / "type") or one.name for one in self._cooling if _read(one / "cur_state")}

    def stop(self) -> Reading:
        self.sample()
        risen = {path.name for path, before in self._before.items() if (_read(path) or 0) > (before or 0)}
        tells = bool(self._counters or self._cooling)
        governors = {_text(path) for path in self._root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
        return Reading(
            clocks_mhz=self._clocks.summary(),
            temperature_max_c=self._temperatures.highest(),
            throttled=tuple(sorted(risen | self._cooled)) if tells else None,
            state={"governors": sorted(one for one in governors if one)} if governors else {},
        )

    def _megahertz(self) -> Iterator[float]:
        scaled = list(self._root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"))
        yield from (value / 1000 for path in scaled if (value := _read(path)) is not None)
        if not scaled:
            text = _text(self._root / "proc/cpuinfo") or ""
            yield from (float(one) for one in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE))


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return None


def _read(path: Path) -> int | None:
    with contextlib.suppress(ValueError, TypeError):
        return int(_text(path) or "")
    return None
