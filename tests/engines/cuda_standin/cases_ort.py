"""What megrez.engines.ort.cuda asks of CUDA before a weight is read. ONNX Runtime is the one for CPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from megrez.engines.ort import MODEL_FILE
from megrez.engines.ort.cuda import open_session
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError
from megrez.runtime.manifest import File
from tests.engines.cuda_standin.standin import StandIn
from tests.runtime.conftest import plain_manifest

WEIGHTS = 10 << 20
CACHES = 3 * plain_manifest().kv_cache.bytes_per_token * plain_manifest().context_length


@pytest.fixture(autouse=True)
def with_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


def said(folder: Path, **options: Any) -> str:
    files = (File(path=f"{MODEL_FILE}.data", size=WEIGHTS, sha256="0" * 64),)
    manifest = replace(plain_manifest(), engine="ort-cuda", target="cuda-int4", files=files)
    with pytest.raises(EngineError) as caught:
        open_session(Bundle(path=folder, manifest=manifest), threads=None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_gpu(gpu: StandIn, tmp_path: Path) -> None:
    gpu.reset(count=0)
    assert said(tmp_path).startswith("no NVIDIA GPU was found: run this bundle on a machine with one, ")


def test_an_older_gpu(gpu: StandIn, tmp_path: Path) -> None:
    gpu.reset(capability=70)
    found = said(tmp_path)
    assert found.startswith("cuda-int4 needs NVIDIA GPUs of SM75 and later, through ONNX Runtime, this GPU is sm_70: ")


def test_too_little_memory(gpu: StandIn, tmp_path: Path) -> None:
    """10 MiB of weights, and caches for three sequences."""
    gpu.reset(total=2 * WEIGHTS, occupied=WEIGHTS - CACHES + 1)
    assert said(tmp_path, slots=3) == (
        f"the model and its KV cache need {(WEIGHTS + CACHES) / 2**20:.0f} MiB, the GPU has 10 MiB free: free some, or "
        "choose a smaller target, a smaller --context or fewer sequences"
    )


def test_just_enough_memory_is_no_fault_but_cudas_libraries_are_missing(gpu: StandIn, tmp_path: Path) -> None:
    """What onnxruntime says here, where it has no CUDA at all."""
    gpu.reset(capability=90, total=2 * WEIGHTS, occupied=WEIGHTS - CACHES)
    found = said(tmp_path, slots=3)
    assert found.startswith(f"onnxruntime-gpu {onnxruntime.__version__} cannot load its CUDA provider, ")
    assert found.endswith("run  pip uninstall -y onnxruntime && pip install 'megrez-compile[cuda]'")
