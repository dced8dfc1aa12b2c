"""tegrastats and nvpmodel, on lines in the format of NVIDIA's guide with the rails of each module.

Written from that format; none was recorded by us on a device.
"""

import os
from pathlib import Path

import pytest

from megrez.runtime.bench.sensors.jetson import Jetson, parse_power_mode, parse_tegrastats, power_mode, summarise
from megrez.runtime.bench.sensors.reading import AbsentError

ORIN_NX = (
    "11-28-2026 10:00:00 RAM 5120/15523MB (lfb 4x4MB) SWAP 0/7761MB (cached 0MB) "
    "CPU [12%@1984,0%@1984,off,off,7%@729,0%@729,off,off] EMC_FREQ 31%@3199 GR3D_FREQ 99%@[917,911] VIC_FREQ 0%@115 "
    "APE 174 cpu@52.5C soc2@49C gpu@54.75C cv0@-256C tj@54.75C "
    "VDD_IN 18234mW/17110mW VDD_CPU_GPU_CV 9512mW/8800mW VDD_SOC 3011mW/2950mW"
)
AGX_ORIN = (
    "RAM 4722/30536MB (lfb 6x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@1300 "
    "CPU@45.312C Tboard@35C GPU@43.5C VDD_GPU_SOC 2408mW/2408mW VDD_CPU_CV 401mW/401mW VIN_SYS_5V0 3621mW/3621mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 402mW/402mW"
)
THOR = (
    "11-28-2026 10:00:01 RAM 9000/125772MB (lfb 1x4MB) CPU [3%@2601] GR3D_FREQ 80%@[1386,1386,1386] cpu@44.1C "
    "tj@47.0C VDD_GPU 12010mW/11000mW VDD_CPU_SOC_MSS 6510mW/6500mW VIN_SYS_5V0 6520mW/6500mW VIN 41200mW/40100mW"
)


def test_orin_nx_has_one_rail_for_the_whole_module():
    found = parse_tegrastats(ORIN_NX)
    assert (found.total_mw, found.ram_mib) == (18234, 5120)
    assert found.clocks_mhz == {"cpu": (1984 + 1984 + 729 + 729) / 4, "gpu": 914.0, "memory": 3199.0}
    assert found.temperatures_c == {"cpu": 52.5, "soc2": 49.0, "gpu": 54.75, "tj": 54.75}  # without the one that is off


def test_agx_orin_is_the_sum_of_its_three_inputs():
    found = parse_tegrastats(AGX_ORIN)
    assert found.total_mw == 2408 + 401 + 3621
    assert found.clocks_mhz["gpu"] == 1300.0 and found.temperatures_c["CPU"] == 45.312


def test_thor_tells_its_own_total_and_no_memory_clock():
    found = parse_tegrastats(THOR)
    assert found.total_mw == 41200
    assert found.clocks_mhz == {"cpu": 2601.0, "gpu": 1386.0}


def test_unknown_rails_have_no_total_and_rubbish_has_nothing():
    assert parse_tegrastats("RAM 1/2MB VDD_SYS_GPU 100mW/100mW").total_mw is None
    nothing = parse_tegrastats("tegrastats: permission denied")
    assert (nothing.ram_mib, nothing.rails_mw, nothing.clocks_mhz, nothing.temperatures_c) == (None, {}, {}, {})


def test_energy_is_mean_power_over_the_span_and_peaks_are_kept():
    hotter = ORIN_NX.replace("VDD_IN 18234mW", "VDD_IN 20000mW").replace("RAM 5120", "RAM 6000")
    reading = summarise([parse_tegrastats(line) for line in (ORIN_NX, hotter)], 10.0, "MAXN_SUPER")
    assert reading.energy_j == pytest.approx((18.234 + 20.0) / 2 * 10)
    assert (reading.memory_peak_bytes, reading.temperature_max_c) == (6000 << 20, 54.75)
    assert reading.state == {"power_mode": "MAXN_SUPER"}


def test_without_a_line_there_is_no_energy():
    reading = summarise([], 10.0, None)
    assert (reading.energy_j, reading.memory_peak_bytes, reading.state) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n",
         "MODE_15W_6CORE"),
        ("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\n", None),
    ],
)  # fmt: skip
def test_the_power_mode_is_nvpmodels(text, mode):
    assert parse_power_mode(text) == mode


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_programs_are_run_and_read(tmp_path, monkeypatch):
    program(
        tmp_path, "tegrastats", f'[ "$1 $2" = "--interval 500" ] || exit 1; echo "{THOR}"; echo x > ran; exec sleep 60'
    )
    program(tmp_path, "nvpmodel", "echo 'NV Power Mode: 120W'; echo 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    jetson = Jetson()
    jetson.start()
    while not (tmp_path / "ran").exists():
        pass
    reading = jetson.stop()
    assert reading.watts["module"]["avg"] == 41.2 and reading.state == {"power_mode": "120W"}
    assert reading.energy_j is not None and reading.energy_j > 0


def test_elsewhere_there_is_neither(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_mode() is None
    with pytest.raises(AbsentError, match="no Jetson"):
        Jetson()
