"""Operations and bytes of steps, against those of a decoder written out as matrix products."""

import dataclasses

import pytest

from megrez.runtime.bench.peaks import Peaks, measure_peaks, product_rate
from megrez.runtime.bench.work import Work, bytes_read, describe_work, flops
from megrez.runtime.manifest import File, KvCache
from tests.runtime.bench.test_bandwidth import SHAPE


def product(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def written_out(cached: int, new: int, logits: int) -> int:
    """Token by token, head by head."""
    total = product(logits, 64, 1000)
    for _ in range(SHAPE.num_hidden_layers):
        total += product(new, 64, 4 * 16) + 2 * product(new, 64, 2 * 16) + product(new, 4 * 16, 64)
        total += 2 * product(new, 64, 128) + product(new, 128, 64)
        for at in range(cached, cached + new):
            total += 4 * (product(1, 16, at + 1) + product(1, at + 1, 16))
    return total


@pytest.fixture
def decoder(manifest):
    stored = 4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 2 * 64_000)
    files = (File(path="model.onnx.data", size=stored, sha256=""),)
    cache = KvCache(dtype="float32", bytes_per_token=32)
    return dataclasses.replace(manifest, architecture=SHAPE, kv_cache=cache, files=files)


def test_operations_are_those_of_the_matrix_products_and_of_attention(decoder):
    # One sequence with 10 cached tokens gets 5, of which the last one's logits are computed.
    pairs = 5 * 10 + 5 * 6 // 2
    work = Work(steps=1, seconds=1.0, sequences=1, tokens=5, cached_tokens=15, pairs=pairs, logits=1)
    assert flops(decoder, work) == written_out(10, 5, 1)


def test_weights_are_read_once_per_step_and_the_cache_of_every_sequence(decoder):
    read_once = 4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64_000)
    work = Work(steps=10, seconds=2.0, sequences=30, tokens=30, cached_tokens=500, pairs=500, logits=30)
    assert bytes_read(decoder, work) == 10 * read_once + 500 * 32
    found = describe_work(decoder, {"decode": work, "prefill": Work()}, Peaks(read_bytes_per_s=1e9, flops_per_s=1e12))
    assert found["prefill"] is None
    decode = found["decode"]
    assert decode["bandwidth_share"] == (10 * read_once + 500 * 32) / 2 / 1e9
    assert decode["compute_share"] == flops(decoder, work) / 2 / 1e12
    assert decode["flops_per_byte"] == flops(decoder, work) / bytes_read(decoder, work)


def test_without_a_measured_limit_there_is_no_share(decoder):
    work = Work(steps=1, seconds=1.0, tokens=1, cached_tokens=1, pairs=1, logits=1, sequences=1)
    decode = describe_work(decoder, {"decode": work}, Peaks())["decode"]
    assert (decode["bandwidth_share"], decode["compute_share"]) == (None, None)


def test_arithmetic_is_measured_on_the_spot_with_as_many_threads(monkeypatch):
    rate = product_rate(1)
    assert rate is not None and 1e8 < rate < 1e14


def test_limits_are_those_of_the_device_of_the_engine(monkeypatch):
    monkeypatch.setattr("megrez.runtime.bench.peaks.read_bandwidth", lambda threads: threads * 1e9)
    monkeypatch.setattr("megrez.runtime.bench.peaks.product_rate", lambda threads: threads * 1e10)
    assert measure_peaks("ort", 2) == Peaks(read_bytes_per_s=2e9, flops_per_s=2e10)
    assert measure_peaks("qnn", 2) == Peaks()


def test_a_gpus_bandwidth_is_that_of_copies_within_it(monkeypatch):
    class Cuda:
        class runtime:
            class cudaMemcpyKind:
                cudaMemcpyDeviceToDevice = 3

        def __init__(self, extra):
            calls.append(extra)

        def __call__(self, function, *args):
            calls.append(function)
            return 7

    calls: list[str] = []
    monkeypatch.setattr("megrez.engines.cuda_bandwidth.Cuda", Cuda)
    from megrez.engines import cuda_bandwidth

    now = iter(range(100))
    assert cuda_bandwidth.copy_bandwidth("rtx", lambda: next(now)) == 2 << 30
    assert calls[0] == "rtx" and calls.count("cudaMemcpy") == 10 and calls.count("cudaFree") == 2
    found = measure_peaks("tensorrt", 2)
    assert found.read_bytes_per_s is not None and found.flops_per_s is None


def test_a_gpu_that_cannot_be_measured_has_no_limits():
    assert measure_peaks("tensorrt", 2) == Peaks()
