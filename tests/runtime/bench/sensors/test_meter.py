import pytest

from megrez.runtime.bench.sensors.meter import Meter, describe
from megrez.runtime.bench.sensors.reading import AbsentError, Reading


class Counting:
    """Uses one joule per start, sample and stop."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls = ["start"]

    def sample(self) -> None:
        self.calls.append("sample")

    def stop(self) -> Reading:
        self.calls.append("stop")
        return Reading(energy_j=float(len(self.calls)))


class Failing(Counting):
    def sample(self) -> None:
        raise OSError(5, "Input/output error")


def absent():
    raise AbsentError("no such thing here")


def test_a_new_start_forgets_the_span_before(monkeypatch):
    monkeypatch.setattr("megrez.runtime.bench.sensors.meter._INTERVAL_S", 60)
    sensor = Counting()
    meter = Meter({"a": lambda: sensor, "b": absent})
    meter.start()
    meter.start()
    assert meter.stop() == {"a": Reading(energy_j=2.0)}
    assert sensor.calls == ["start", "stop"] and meter.absent == {"b": "no such thing here"}


def test_samples_are_taken_until_the_end(monkeypatch):
    monkeypatch.setattr("megrez.runtime.bench.sensors.meter._INTERVAL_S", 0.001)
    sensor = Counting()
    meter = Meter({"a": lambda: sensor})
    meter.start()
    while sensor.calls.count("sample") < 3:
        pass
    meter.stop()
    assert sensor.calls[0] == "start" and sensor.calls[-1] == "stop"


def test_a_sensor_that_fails_meanwhile_ends_no_measurement(monkeypatch):
    monkeypatch.setattr("megrez.runtime.bench.sensors.meter._INTERVAL_S", 0.001)
    meter = Meter({"a": Failing})
    meter.start()
    while "a" not in meter.absent:
        pass
    assert meter.stop() == {} and "stopped answering" in meter.absent["a"]


def test_without_a_span_there_is_no_reading():
    assert Meter({"a": Counting}).stop() == {}


def test_cpu_and_gpu_are_added_and_a_jetsons_module_has_both():
    rapl, nvml = Reading(energy_j=10.0), Reading(energy_j=30.0, memory_peak_bytes=99, throttled=("power cap",))
    found = describe({"rapl": rapl, "nvml": nvml}, {"tegrastats": "no Jetson"}, 20)
    assert (found["energy_j"], found["energy_of"], found["energy_per_output_token_j"]) == (40.0, ["rapl", "nvml"], 2.0)
    assert (found["device_memory_peak_bytes"], found["throttled"]) == (99, ["power cap"])
    assert found["sensors_absent"] == {"tegrastats": "no Jetson"}
    module = describe({"nvml": nvml, "tegrastats": Reading(energy_j=50.0)}, {}, 10)
    assert (module["energy_j"], module["energy_of"]) == (50.0, ["tegrastats"])


@pytest.mark.parametrize("readings", [{}, {"host": Reading(throttled=())}, {"nvml": Reading()}])
def test_what_nobody_tells_is_none_and_never_zero(readings):
    found = describe(readings, {}, 20)
    assert (found["energy_j"], found["energy_per_output_token_j"], found["device_memory_peak_bytes"]) == (None,) * 3
    assert found["throttled"] == ([] if "host" in readings else None)
