"""What is written to a layer's file is read back, to the bit and in its type."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from megrez.calibration.recipe import Calibrated
from megrez.calibration.results.layer_file import LayerFile, write_layer
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized

RANDOM = np.random.default_rng(0)


def matrix(bits: int, block: int, columns: int, *, zeros: bool = False, floating: bool = False) -> BlockQuantized:
    shape = 5, -(-columns // block)
    return BlockQuantized(
        bits=bits,
        block=block,
        codes=RANDOM.integers(0, 2**bits - floating, (5, columns)).astype(np.uint8),
        scales=RANDOM.standard_normal(shape, np.float32),
        zero_points=RANDOM.integers(0, 2**bits, shape).astype(np.uint8) if zeros else None,
        floating=floating,
    )


MATRICES = {
    "4 bits": matrix(4, 32, 64),
    "4 bits, odd columns": matrix(4, 32, 33),
    "4 bits, one column": matrix(4, 16, 1),
    "4 bits, odd columns, zero points": matrix(4, 16, 47, zeros=True),
    "8 bits": matrix(8, 32, 70),
    "8 bits, zero points": matrix(8, 32, 70, zeros=True),
    "8 bits, per channel": matrix(8, 70, 70),
    "floating": matrix(8, 45, 45, floating=True),
}


def test_all_arrays_are_read_back(tmp_path: Path) -> None:
    tensors = {"norm.weight": RANDOM.standard_normal(7, np.float32), "v.bias": np.zeros(3, np.float32)}
    tensors["up.weight"] = RANDOM.standard_normal((6, 4), np.float32)[:, ::2]  # not in one piece of memory
    path = tmp_path / "000.safetensors"
    write_layer(path, Calibrated(matrices=MATRICES, tensors=tensors))
    assert [one.name for one in tmp_path.iterdir()] == ["000.safetensors"]
    layer = LayerFile(path)
    assert set(layer.formats) == set(MATRICES) and layer.tensors == set(tensors)
    for name, tensor in tensors.items():
        assert layer.tensor(name).dtype == np.float32
        np.testing.assert_array_equal(layer.tensor(name), tensor)
    for name, expected in MATRICES.items():
        found = layer.matrix(name)
        assert (found.bits, found.block, found.floating) == (expected.bits, expected.block, expected.floating)
        assert found.codes.dtype == np.uint8 and found.scales.dtype == np.float32 and found.offsets is None
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(found.scales, expected.scales)
        np.testing.assert_array_equal(found.zero_points, expected.zero_points)
        assert layer.formats[name] == BlockFormat(
            bits=expected.bits,
            block=expected.block,
            zero_points=expected.zero_points is not None,
            offsets=False,
            floating=expected.floating,
        )


def test_nothing_found_is_a_file_too(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.safetensors", Calibrated())
    layer = LayerFile(tmp_path / "a.safetensors")
    assert not layer.formats and not layer.tensors


@pytest.mark.parametrize(("columns", "width"), [(64, 32), (33, 17), (1, 1)])
def test_two_codes_of_4_bits_take_a_byte(columns: int, width: int, tmp_path: Path) -> None:
    """The earlier in the low half; any reader of safetensors finds them under the matrix's name."""
    one = matrix(4, 64, columns)
    write_layer(tmp_path / "a.safetensors", Calibrated(matrices={"w": one}))
    stored = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert set(stored) == {"w.codes", "w.scales"} and stored["w.codes"].shape == (5, width)
    np.testing.assert_array_equal(stored["w.codes"] & 15, one.codes[:, ::2])
    np.testing.assert_array_equal((stored["w.codes"] >> 4)[:, : columns // 2], one.codes[:, 1::2])
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        formats = json.loads(file.metadata()["formats"])
    assert formats["w"]["bits"] == 4 and formats["w"]["columns"] == columns


def test_an_earlier_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_layer(path, Calibrated(tensors={"x": np.ones(3, np.float32)}))
    write_layer(path, Calibrated(tensors={"y": np.ones(2, np.float32)}))
    assert LayerFile(path).tensors == {"y"}


def test_a_file_that_finds_no_room_is_an_oserror(tmp_path: Path) -> None:
    """As a full disk says it; the library that writes has errors of its own."""
    path = tmp_path / "a.safetensors"
    path.with_suffix(".partial").mkdir()
    with pytest.raises(OSError):
        write_layer(path, Calibrated(matrices=MATRICES))
