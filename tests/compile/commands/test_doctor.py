"""`megrez doctor` on machines that are faked, and on this one without the libraries it reports on."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from megrez.compile import machine
from megrez.compile.commands import doctor

H100 = machine.Gpu(name="H100", capability=90, driver="570", memory_mib=81920, free_mib=80000)


@pytest.fixture
def fake(monkeypatch):
    def set_machine(*, modules=(), packages=(), gpus=()):
        monkeypatch.setattr(machine, "can_import", lambda name: name in modules)
        monkeypatch.setattr(machine, "package_version", lambda name: "1" if name in packages else None)
        monkeypatch.setattr(machine, "gpus", lambda: list(gpus))
        monkeypatch.setattr(machine, "read_bandwidth", lambda threads: 1e9)

    return set_machine


def test_a_bare_machine_is_told_every_extra_with_its_command(fake):
    fake()
    done = CliRunner().invoke(doctor.doctor_command, [])
    assert done.exit_code == 0
    for extra in ("cpu", "cuda", "rtx", "trt", "qnn", "export"):
        assert f"pip install 'megrez-compile[{extra}]'" in done.output, extra
    assert done.output.count("no: ") == 10 and "nvidia-smi lists no NVIDIA GPU" in done.output


def test_what_is_there_is_said_to_work(fake):
    modules = (*doctor._EXPORT, "onnxruntime", "tensorrt_rtx", "cuda.bindings")
    fake(modules=modules, packages=("onnxruntime-gpu",), gpus=[H100])
    rows = {row.name: (row.compiles, row.runs) for row in doctor.engines()}
    yes = ("yes", "yes")
    assert [rows[name] for name in ("ONNX Runtime CPU", "ONNX Runtime CUDA", "TensorRT-RTX")] == [yes] * 3
    assert "megrez-compile[trt]" in rows["TensorRT"][0] and "megrez-compile[qnn]" in rows["QNN"][1]
    assert "H100, sm_90, driver 570, 80000 of 81920 MiB free" in doctor.describe()["GPU"]


def test_two_onnxruntimes_in_one_folder_are_a_conflict(fake):
    fake(modules=("onnxruntime",), packages=("onnxruntime", "onnxruntime-gpu"))
    assert all("the same folder" in row.runs for row in doctor.engines()[:2])


def test_an_old_gpu_is_not_enough(fake):
    old = machine.Gpu(name="P100", capability=60, driver="1", memory_mib=1, free_mib=1)
    fake(gpus=[old])
    assert "the GPU is sm_60, and sm_75 or later is needed" in doctor.engines()[1].runs


@pytest.mark.parametrize(
    ("found", "setting", "said"),
    [
        (None, "", "ONNX Runtime's: this CPU lacks AVX2"),
        ("AVX2", "", "ours with AVX2"),
        ("AVX-512 and VNNI", "1", "ours with AVX-512 and VNNI"),
        ("AVX2", "0", "ONNX Runtime's: MEGREZ_KERNELS is 0"),
    ],
)
def test_the_kernels_named_are_those_that_a_session_registers(monkeypatch, tmp_path, found, setting, said):
    monkeypatch.setattr(doctor, "find_library", lambda: tmp_path)
    monkeypatch.setattr(doctor, "instructions", lambda library: found)
    monkeypatch.setenv("MEGREZ_KERNELS", setting)
    assert doctor.kernels().startswith(said)


def test_processor_and_memory_are_read_from_proc(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Some CPU\nflags : fpu avx2 avx512_vnni\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")
    model, instructions = machine.processor(tmp_path)
    assert model.startswith("Some CPU") and instructions == ["avx2", "avx512_vnni"]
    assert machine.memory(tmp_path) == (2048 * 1024, 1024 * 1024)


def test_it_runs_where_no_library_of_an_extra_is():
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['megrez', 'doctor', '--json']\n"
        "from megrez.runtime.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "megrez-compile[cpu]" in found["engines"][0]["runs"]
    assert "GB/s" in found["machine"]["bandwidth"]
