"""Sessions whose KV cache is float16 or int8: the contract of every session, and what lies in the buffers."""

import dataclasses
import itertools
import mmap
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.engines.ort import custom_ops, memory
from megrez.engines.ort.bound import OrtSession
from megrez.engines.ort.caches import cache_shape
from megrez.engines.ort.place import HOST, MAPPED
from megrez.engines.ort.session import open_session
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import UsageError
from tests.engines.ort.own_kernels import needs_library
from tests.graphs import IDS
from tests.reference import logits
from tests.session_contract import Contract, alone, check_session

# How far logits may be from transformers': the formats' rounding, seen in the two layers of the tiny model.
ROUNDING = {"f16": 5e-3, "int8": 5e-2}


def opened(bundle: Path, slots: int = 1) -> OrtSession:
    session = open_session(open_bundle(bundle), threads=1, slots=slots)
    assert isinstance(session, OrtSession)
    return session


def caches(session: Any) -> dict[str, NDArray[Any]]:
    return {name: buffer.read() for name, buffer in session._caches.buffers.items()}


def soil(session: Any) -> None:
    for cache in caches(session).values():
        cache.fill(127 if cache.dtype == np.int8 else np.nan)


@needs_library
@pytest.mark.parametrize(
    ("setting", "kv"),
    [
        *itertools.product(["", "portable"], ROUNDING),
        ("0", "int8"),
        pytest.param("0", "f16", marks=pytest.mark.slow),  # its attention is that of the first setting
    ],
)
def test_the_contract_of_every_session(bundle_of: Any, monkeypatch: pytest.MonkeyPatch, kv: str, setting: str) -> None:
    """With our kernels, with ONNX Runtime's but for attention, and with attention in portable C."""
    monkeypatch.setenv(custom_ops.SETTING, setting)
    folder, bundle = bundle_of(family="mistral", sliding_window=5, tied=True, kv=kv)

    def soiled(slots: int) -> OrtSession:
        session = opened(bundle, slots)
        soil(session)
        return session

    def transformers(ids: list[int]) -> NDArray[np.float32]:
        return logits(folder, ids)

    # Matrix products in float32 depend on the batch a little, and one of their bits may decide a rounding.
    contract = Contract(
        open=soiled,
        reference=alone(soiled(1)),
        tolerance=ROUNDING[kv],
        truth=(transformers, ROUNDING[kv]),
        vocab_size=320,
    )
    check_session(contract)


@needs_library
@pytest.mark.parametrize("kv", ROUNDING)
def test_it_is_not_the_float32_cache(bundle_of: Any, kv: str) -> None:
    folder, bundle = bundle_of(kv=kv)
    found = np.array(opened(bundle).step(IDS[0], [0], np.arange(16)))
    off = np.abs(found - logits(folder, IDS[0])).max()
    assert 1e-5 < off < ROUNDING[kv]


@needs_library
@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
def test_with_quantised_weights(bundle_of: Any, target: str) -> None:
    ours, plain = (bundle_of(target=target, kv=kv)[1] for kv in ("int8", "f32"))
    found, expected = (np.array(opened(one).step(IDS[0], [0], np.arange(16))) for one in (ours, plain))
    # A changed value may round to another step when it enters the next product: 0.06 without a changed cache.
    assert 0 < np.abs(found - expected).max() < 4 * ROUNDING["int8"]


@needs_library
def test_buffers_have_the_size_that_the_manifest_states(bundle_of: Any) -> None:
    for kv, dtype in (("f32", "float32"), ("f16", "float16"), ("int8", "int8")):
        bundle = open_bundle(bundle_of(kv=kv)[1])
        cache = bundle.manifest.kv_cache
        assert cache.dtype == dtype and (cache.scales is not None) == (cache.keys is not None) == (kv == "int8")
        session = opened(bundle.path, slots=3)
        total = sum(array.nbytes for array in caches(session).values())
        assert total == cache_shape(bundle, 3, None).nbytes == 3 * 24 * cache.bytes_per_token


@needs_library
def test_a_copy_takes_the_tokens_asked_for_and_their_scales(bundle_of: Any) -> None:
    session = opened(bundle_of(kv="int8")[1], slots=2)
    soil(session)
    session.step(IDS[0][:9], [0], [], slots=[0], counts=[9])
    session.copy(0, 1, 6)
    assert {name.partition(".")[2] for name in caches(session)} == {"key", "value", "key_scale", "value_scale"}
    for cache in caches(session).values():
        np.testing.assert_array_equal(cache[1, :, :6], cache[0, :, :6])
        assert ((cache[1, :, 6:] == 127) | np.isnan(cache[1, :, 6:].astype(np.float32))).all()


def test_what_exceeds_the_machines_memory_is_refused_before_anything_is_opened(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = open_bundle(shutil.copytree(bundle_of()[1], tmp_path / "b"))
    (bundle.path / "model.onnx").unlink()  # nothing could be loaded
    size, token = sum(file.size for file in bundle.manifest.files), 2 * 2 * 2 * 32 * 4
    monkeypatch.setattr(memory, "machine_memory", lambda: size + 3 * 7 * token)
    with pytest.raises(UsageError) as caught:
        open_session(bundle, threads=1, slots=3)
    needed = f"{(size + 3 * 24 * token) / 1e9:.2f} GB of memory"
    assert str(caught.value).startswith(f"{bundle.path} with 3 x 24 tokens needs {needed} (")
    assert str(caught.value).endswith("choose a --context of at most 7, or fewer slots, or a bundle with --kv int8")
    monkeypatch.setattr(memory, "machine_memory", lambda: 1)
    int8 = dataclasses.replace(bundle.manifest.kv_cache, dtype="int8")
    manifest = dataclasses.replace(bundle.manifest, kv_cache=int8)
    with pytest.raises(UsageError, match=r"this machine has 0\.00 GB: open it on a larger one$"):
        open_session(dataclasses.replace(bundle, manifest=manifest), threads=1)


def resident(array: NDArray[Any]) -> int:
    """Bytes of the array's mapping that are in memory, as Linux counts them."""
    address, found, inside = array.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_a_large_cache_takes_memory_as_it_fills() -> None:
    shape = (2, 10, MAPPED // mmap.PAGESIZE * 4, 64)
    buffer = HOST.zeros(shape, np.int8)
    array = buffer.read()
    before = resident(array)
    array[1, :, : mmap.PAGESIZE // 64] = 1  # a page per head
    assert before + 10 * mmap.PAGESIZE <= resident(array) < before + 20 * mmap.PAGESIZE
    assert not array[0].any() and array[1, :, : mmap.PAGESIZE // 64].all()
