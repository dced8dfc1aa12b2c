"""NVML's functions as nvidia-ml-py spells them, on a stand-in with a GPU whose values are known."""

from types import SimpleNamespace

import pytest

from megrez.runtime.bench.sensors.nvml import Nvml
from megrez.runtime.bench.sensors.reading import AbsentError


class NVMLError(Exception):
    pass


class Library:
    """Functions that are None are those that the GPU does not support."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, **values: object) -> None:
        self.values = {
            "nvmlInit": 0,
            "nvmlDeviceGetHandleByIndex": "gpu 0",
            "nvmlDeviceGetTotalEnergyConsumption": 5_000,
            "nvmlDeviceGetPowerUsage": 300_000,
            "nvmlDeviceGetClockInfo": 1_980,
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 << 30),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetName": "NVIDIA H100",
            "nvmlDeviceGetMaxClockInfo": 1_980,
            **values,
        }

    def __getattr__(self, name):
        if name not in self.values:
            raise AttributeError(name)

        def call(*args):
            if self.values[name] is None:
                raise NVMLError("Not Supported")
            return self.values[name]

        return call


def test_energy_is_the_difference_of_the_gpus_counter_and_idle_is_no_throttling():
    library = Library()
    nvml = Nvml(library)
    nvml.start()
    library.values["nvmlDeviceGetTotalEnergyConsumption"] = 17_500
    reading = nvml.stop()
    assert reading.energy_j == 12.5
    assert reading.watts == {"gpu": {"min": 300.0, "avg": 300.0, "max": 300.0}}
    assert reading.clocks_mhz["sm"]["max"] == 1980
    assert (reading.memory_peak_bytes, reading.temperature_max_c) == (3 << 30, 64)
    assert reading.throttled == ()
    assert reading.state["power_limit_w"] == 700.0


def test_without_that_counter_it_is_mean_power_over_the_span():
    now = iter([0.0, 10.0, 14.0])
    nvml = Nvml(Library(nvmlDeviceGetTotalEnergyConsumption=None), clock=lambda: next(now))
    nvml.start()
    assert nvml.stop().energy_j == 300.0 * 4


def test_reasons_are_gathered_over_all_samples():
    library = Library(nvmlDeviceGetCurrentClocksEventReasons=0x20)
    nvml = Nvml(library)
    nvml.start()
    nvml.sample()
    library.values["nvmlDeviceGetCurrentClocksEventReasons"] = 0x04 | 0x1
    assert nvml.stop().throttled == ("power cap", "thermal, by software")


def test_the_older_name_of_the_reasons_is_asked_too():
    library = Library(nvmlDeviceGetCurrentClocksThrottleReasons=0x40)
    del library.values["nvmlDeviceGetCurrentClocksEventReasons"]
    assert Nvml(library).stop().throttled == ("thermal, by hardware",)


def test_what_a_gpu_does_not_tell_is_none_and_never_zero():
    silent = {name: None for name in Library().values if name.startswith("nvmlDeviceGet")}
    silent["nvmlDeviceGetHandleByIndex"] = "gpu 0"
    reading = Nvml(Library(**silent)).stop()
    assert (reading.energy_j, reading.memory_peak_bytes, reading.throttled) == (None, None, None)
    assert (reading.watts, reading.clocks_mhz, reading.state) == ({}, {}, {})


def test_no_library_and_no_gpu_are_absent_with_the_reason(monkeypatch):
    with pytest.raises(AbsentError, match="NVML finds no GPU"):
        Nvml(Library(nvmlInit=None))
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(AbsentError, match="nvidia-ml-py is not installed"):
        Nvml()
