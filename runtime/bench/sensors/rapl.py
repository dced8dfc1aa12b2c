"""Energy of CPU packages and memory, from Linux's powercap counters (RAPL; Intel, and AMD since Zen)."""

from pathlib import Path

from megrez.runtime.bench.sensors.reading import AbsentError, Reading

_FOLDER = "sys/class/powercap"


class Rapl:
    """root: the parent of /sys. Raises AbsentError.

    Counts the packages and their `dram`; other zones within a package (cores, graphics) are part of it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / _FOLDER).glob("*-rapl:*"))
        if not zones:
            raise AbsentError("no powercap zone in /sys/class/powercap")
        self._zones = {
            zone: name
            for zone in zones
            if (name := (zone / "name").read_text(encoding="utf-8").strip()).startswith(("package", "dram"))
        }
        self._before: dict[Path, int] = {}
        self._used: dict[Path, int] = {}
        try:
            self.start()
        except PermissionError:
            raise AbsentError("energy_uj of /sys/class/powercap is readable by root only") from None
        except (OSError, ValueError) as error:
            raise AbsentError(f"the powercap zones cannot be read ({error})") from error

    def start(self) -> None:
        self._before = {zone: _number(zone / "energy_uj") for zone in self._zones}
        self._used = dict.fromkeys(self._zones, 0)

    def sample(self) -> None:
        """The counter wraps round within minutes, so each sample adds what was used since the last one."""
        for zone, before in self._before.items():
            now = _number(zone / "energy_uj")
            wrapped = 0 if now >= before else _number(zone / "max_energy_range_uj")
            self._used[zone] += now - before + wrapped
            self._before[zone] = now

    def stop(self) -> Reading:
        self.sample()
        joules = {f"{name} ({zone.name})": self._used[zone] / 1e6 for zone, name in self._zones.items()}
        return Reading(energy_j=sum(joules.values()), state={"zones_j": joules})


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))
