"""Opening an engine that is none, or whose library is missing or another: one line each.

No GPU is used or imitated; see tests/engines/cuda_standin for what is asked of CUDA.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

from megrez.engines.tensorrt.cuda import CudaDevice, open_log
from megrez.engines.tensorrt.runtime_cache import cache_path
from megrez.engines.tensorrt.session import open_session
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, EngineError, MissingExtraError, UsageError
from megrez.runtime.manifest import Device
from tests.runtime.conftest import plain_manifest

DEVICE = Device(
    library="tensorrt_rtx",
    version=tensorrt_rtx.__version__,
    capabilities=("sm_89", "sm_120"),
    slots=2,
    chunk=16,
    max_logits=4,
    memory_bytes=10 << 20,
    version_compatible=False,
)


def bundle(folder: Path, **changes: Any) -> Bundle:
    manifest = replace(plain_manifest(), engine="tensorrt", device=replace(DEVICE, **changes))
    return Bundle(path=folder, manifest=manifest)


def test_an_engine_for_later_gpus_too_takes_them() -> None:
    device = replace(DEVICE, capabilities=("sm_75", "sm_80+"))
    assert [one for one in (70, 75, 79, 80, 89, 120) if device.takes(one)] == [75, 80, 89, 120]
    assert [one for one in (80, 89, 90, 120) if DEVICE.takes(one)] == [89, 120]


def test_a_plan_that_is_no_engine(tmp_path: Path) -> None:
    """What TensorRT itself says of it, here without a GPU."""
    (tmp_path / "model.plan").write_bytes(b"no engine")
    device = object.__new__(CudaDevice)
    device._log = open_log(tensorrt_rtx)
    device._runtime = tensorrt_rtx.Runtime(device._log)
    with pytest.raises(EngineError, match=r"model.plan cannot be read as an engine \(.*\): copy or "):
        device._read(bundle(tmp_path))


def test_a_plan_of_another_version_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_session(bundle(tmp_path, version="1.6.1.120"), threads=None)
    assert f"was built by tensorrt_rtx 1.6.1.120, {tensorrt_rtx.__version__} is installed: install" in str(caught.value)


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"needs tensorrt \(.*\), which is not installed: .*\[trt\]"):
        open_session(bundle(tmp_path, library="tensorrt"), threads=None)


def test_more_sequences_than_the_engine_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^3 slots were requested, .* was built for 2: compile with --batch 3$"):
        open_session(bundle(tmp_path), threads=None, slots=3)


@pytest.mark.parametrize("capacity", [0, 65])
def test_more_room_than_the_engine_has(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(UsageError, match=rf"^a context of {capacity} tokens was requested, .* allows 1 to 64: "):
        open_session(bundle(tmp_path), threads=None, capacity=capacity)


def test_a_bundle_without_a_device_is_not_whole(tmp_path: Path) -> None:
    manifest = replace(plain_manifest(), engine="tensorrt", device=None)
    with pytest.raises(BundleError, match=r"^manifest.json states no device for its engine: compile the bundle again$"):
        open_session(Bundle(path=tmp_path, manifest=manifest), threads=None)


def test_compiled_kernels_are_kept_beside_the_bundle_and_not_in_it(tmp_path: Path) -> None:
    assert cache_path(tmp_path / "b") == tmp_path / ".b.runtime-cache"
