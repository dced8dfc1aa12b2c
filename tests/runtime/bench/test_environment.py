import hashlib
import shlex
import sys

from megrez.runtime.bench.environment import cpu_model, describe_environment, peak_rss_bytes
from megrez.runtime.bundle import open_bundle


def test_the_environment_names_the_bundle_by_its_manifests_hash_and_the_exact_command(make_bundle, monkeypatch):
    folder = make_bundle()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/megrez", "bench", "a folder", "--seed", "3"])
    found = describe_environment(open_bundle(folder), 2)
    assert found["bundle_sha256"] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert shlex.split(found["command"]) == ["megrez", "bench", "a folder", "--seed", "3"]
    assert (found["bundle"], found["target"], found["threads"]) == ("bundle", "cpu-fp32", 2)
    assert found["versions"].keys() >= {"megrez-compile", "numpy"}
    assert found["cpus"] >= found["cores"] >= 1


def test_without_a_bundle_its_fields_are_null():
    found = describe_environment(None, None)
    assert [found[name] for name in ("bundle", "bundle_sha256", "target", "threads")] == [None] * 4


def test_the_cpu_is_named_as_each_architecture_does(tmp_path):
    (tmp_path / "proc").mkdir()
    for text, name in (
        ("processor : 0\nmodel name\t: AMD EPYC 7763\n", "AMD EPYC 7763"),
        ("processor\t: 0\nHardware\t: Qualcomm SM8750\n", "Qualcomm SM8750"),
    ):
        (tmp_path / "proc/cpuinfo").write_text(text)
        assert cpu_model(tmp_path) == name


def test_peak_memory_sees_a_large_buffer():
    before = peak_rss_bytes()
    size = before + (64 << 20)
    buffer = bytearray(size)
    buffer[::4096] = b"x" * len(buffer[::4096])
    assert peak_rss_bytes() >= size
