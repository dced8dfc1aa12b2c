"""RAPL and the host's clocks, on folders laid out as Linux's /sys."""

from pathlib import Path

import pytest

from megrez.runtime.bench.sensors.host import Host
from megrez.runtime.bench.sensors.rapl import Rapl
from megrez.runtime.bench.sensors.reading import AbsentError


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def zone(number: str, name: str, energy: int, most: int = 1_000_000) -> dict[str, object]:
    folder = f"sys/class/powercap/intel-rapl:{number}"
    return {f"{folder}/name": name, f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": most}


def test_packages_and_memory_are_summed_and_cores_are_part_of_a_package(tmp_path):
    zones = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1"}
    for number, name in zones.items():
        write(tmp_path, zone(number, name, 100_000))
    rapl = Rapl(tmp_path)
    rapl.start()
    for number, name in zones.items():
        write(tmp_path, zone(number, name, 400_000))
    reading = rapl.stop()
    assert reading.energy_j == pytest.approx(3 * 0.3)
    assert reading.throttled is None and reading.memory_peak_bytes is None


def test_a_counter_that_wraps_between_two_samples_goes_on(tmp_path):
    write(tmp_path, zone("0", "package-0", 900_000))
    rapl = Rapl(tmp_path)
    rapl.start()
    for energy in (100_000, 950_000, 50_000):  # 0.2 J, 0.85 J, 0.1 J
        write(tmp_path, zone("0", "package-0", energy))
        rapl.sample()
    assert rapl.stop().energy_j == pytest.approx(1.15)


def test_without_counters_the_reason_is_said(tmp_path, monkeypatch):
    with pytest.raises(AbsentError, match="no powercap zone"):
        Rapl(tmp_path)
    write(tmp_path, zone("0", "package-0", 1))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("megrez.runtime.bench.sensors.rapl._number", refuse)
    with pytest.raises(AbsentError, match="root only"):
        Rapl(tmp_path)


CPU = "sys/devices/system/cpu"


def test_clocks_are_means_over_cpus_and_extremes_over_samples(tmp_path):
    write(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 2_000_000,
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": 3_000_000,
            f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil",
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": 61_500,
        },
    )
    host = Host(tmp_path)
    host.start()
    host.sample()
    write(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 1_000_000})
    reading = host.stop()
    assert reading.clocks_mhz == {"cpu": {"min": 2000.0, "avg": 2250.0, "max": 2500.0}}
    assert (reading.temperature_max_c, reading.state) == (61.5, {"governors": ["schedutil"]})
    assert reading.throttled is None  # nothing here tells


def test_without_cpufreq_the_clocks_are_those_of_proc(tmp_path):
    write(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2400.000\n\ncpu MHz\t\t: 2600.000"})
    assert Host(tmp_path).stop().clocks_mhz["cpu"]["avg"] == 2500.0


@pytest.mark.parametrize(
    "name", [f"{CPU}/cpu0/thermal_throttle/core_throttle_count", "sys/class/hwmon/hwmon3/oc2_event_cnt"]
)
def test_a_counter_that_rises_is_throttling(tmp_path, name):
    write(tmp_path, {name: 7})
    host = Host(tmp_path)
    host.start()
    assert host.stop().throttled == ()
    host.start()
    write(tmp_path, {name: 8})
    assert host.stop().throttled == (Path(name).name,)


def test_a_cooling_device_that_acts_during_the_span_is_throttling(tmp_path):
    device = "sys/class/thermal/cooling_device0"
    write(tmp_path, {f"{device}/type": "cpufreq-cpu0", f"{device}/cur_state": 0})
    host = Host(tmp_path)
    host.start()
    write(tmp_path, {f"{device}/cur_state": 2})
    host.sample()
    write(tmp_path, {f"{device}/cur_state": 0})
    assert host.stop().throttled == ("cpufreq-cpu0",)


def test_a_fan_is_no_throttling(tmp_path):
    write(
        tmp_path,
        {"sys/class/thermal/cooling_device0/type": "pwm-fan", "sys/class/thermal/cooling_device0/cur_state": 3}
        | {"proc/cpuinfo": "cpu MHz : 1000"},
    )
    assert Host(tmp_path).stop().throttled is None


def test_a_machine_that_tells_nothing_has_no_host_sensor(tmp_path):
    with pytest.raises(AbsentError):
        Host(tmp_path)
