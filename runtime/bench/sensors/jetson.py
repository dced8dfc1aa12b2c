"""Power, clocks, temperature and memory of a Jetson, from the output of tegrastats and nvpmodel.

Not run on a Jetson yet: the formats are those of NVIDIA's Jetson Linux guide and of published logs.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from megrez.runtime.bench.sensors.reading import AbsentError, Reading, Series

_INTERVAL_MS = 500
# What the whole module takes: one rail of Orin NX, Orin Nano and Thor; the sum of three of AGX Orin.
_WHOLE = ("VDD_IN", "VIN")
_PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One line of tegrastats. total_mw: None where its rails are none of those that are known."""

    ram_mib: int | None
    rails_mw: dict[str, int]
    clocks_mhz: dict[str, float]
    temperatures_c: dict[str, float]

    @property
    def total_mw(self) -> int | None:
        for name in _WHOLE:
            if name in self.rails_mw:
                return self.rails_mw[name]
        if all(name in self.rails_mw for name in _PARTS):
            return sum(self.rails_mw[name] for name in _PARTS)
        return None


def parse_tegrastats(line: str) -> Stats:
    """Unknown parts of the line are left out."""
    ram = re.search(r"\bRAM (\d+)/\d+MB", line)
    rails = {name: int(now) for name, now in re.findall(r"\b(V\w+) (-?\d+)mW", line)}
    clocks = {name: value for name, value in _clocks(line) if value is not None}
    # A sensor that is switched off tells -256.
    temperatures = {name: float(value) for name, value in re.findall(r"\b(\w+)@(-?[\d.]+)C\b", line)}
    return Stats(
        ram_mib=int(ram[1]) if ram else None,
        rails_mw=rails,
        clocks_mhz=clocks,
        temperatures_c={name: value for name, value in temperatures.items() if value > -100},
    )


def _clocks(line: str) -> Iterator[tuple[str, float | None]]:
    """Megahertz; the mean of the CPUs that are on, and of the GPU's clusters."""
    cpus = re.search(r"\bCPU \[([^\]]*)\]", line)
    yield "cpu", _mean(re.findall(r"@(\d+)", cpus[1])) if cpus else None
    gpu = re.search(r"\bGR3D_FREQ \d+%@\[?([\d,]+)", line)
    yield "gpu", _mean(gpu[1].split(",")) if gpu else None
    memory = re.search(r"\bEMC_FREQ \d+%@(\d+)", line)
    yield "memory", float(memory[1]) if memory else None


def _mean(values: Iterable[str]) -> float | None:
    found = [float(value) for value in values if value]
    return sum(found) / len(found) if found else None


def parse_power_mode(text: str) -> str | None:
    """The mode's name in the output of `nvpmodel -q`."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    return found[1] if found else None


class Jetson:
    """Reads tegrastats, which runs until `stop`. Raises AbsentError where there is none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        program = shutil.which("tegrastats")
        if program is None:
            raise AbsentError("no tegrastats: this is no Jetson")
        self._program, self._clock = program, clock
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._end()
        command = [self._program, "--interval", str(_INTERVAL_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._started = self._clock()

    def sample(self) -> None:
        """tegrastats keeps its own time; a pipe holds minutes of its lines."""

    def stop(self) -> Reading:
        elapsed = self._clock() - self._started
        return summarise([parse_tegrastats(line) for line in self._end()], elapsed, power_mode())

    def _end(self) -> list[str]:
        if self._process is None:
            return []
        self._process.terminate()
        lines, _ = self._process.communicate()
        self._process = None
        return lines.splitlines()


def power_mode() -> str | None:
    """What nvpmodel says; None where it is missing or does not answer this user."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_power_mode(done.stdout)


def summarise(lines: list[Stats], elapsed_s: float, mode: str | None) -> Reading:
    """Energy is the mean power over the span."""
    watts, clocks, temperatures = Series(), Series(), Series()
    for line in lines:
        watts.add("module", None if line.total_mw is None else line.total_mw / 1000)
        for series, found, scale in (
            (watts, line.rails_mw, 1000),
            (clocks, line.clocks_mhz, 1),
            (temperatures, line.temperatures_c, 1),
        ):
            for name, value in found.items():
                series.add(name, value / scale)
    used = [line.ram_mib for line in lines if line.ram_mib is not None]
    summary = watts.summary()
    return Reading(
        energy_j=summary["module"]["avg"] * elapsed_s if "module" in summary else None,
        watts=summary,
        clocks_mhz=clocks.summary(),
        temperature_max_c=temperatures.highest(),
        memory_peak_bytes=max(used) << 20 if used else None,
        state={} if mode is None else {"power_mode": mode},
    )
