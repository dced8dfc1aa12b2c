"""Weights are streamed: one at a time, each on a page of the data file, exactly as its recipe makes it."""

import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from megrez.compile.graph.weights import add_lazy
from megrez.engines.onnx_files import EMBEDDED_BYTES, PAGE, data_bytes, write_onnx
from megrez.engines.ort import MODEL_FILE

DATA_FILE = "model.onnx.data"
SHAPES = {"a": (40, 30), "b": (16, 16), "c": (70, 40), "small": (16, 16)}
DTYPES = {"a": np.float32, "b": np.float32, "c": np.uint8, "small": np.uint8}
ARRAYS: dict[str, NDArray[Any]] = {
    name: np.random.default_rng(len(name)).integers(0, 200, shape).astype(DTYPES[name])
    for name, shape in SHAPES.items()
}


def model(recipe: Any = lambda name: ARRAYS[name].copy()) -> ir.Model:
    """Passes every initializer through to an output."""
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g"), ir_version=11)
    for name, shape in SHAPES.items():
        dtype = ir.DataType.from_numpy(np.dtype(DTYPES[name]))
        value = add_lazy(graph, name, dtype, shape, lambda n=name: recipe(n))  # type: ignore[misc]
        node = ir.node("Identity", [value])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{name}_out", value.type, value.shape
        graph.graph.append(node)
        graph.graph.outputs.append(node.outputs[0])
    return graph


def external(path: Path) -> dict[str, ExternalDataInfo]:
    stored = onnx.load(path, load_external_data=False).graph.initializer
    return {t.name: ExternalDataInfo(t) for t in stored if t.data_location == onnx.TensorProto.EXTERNAL}


def test_the_files_hold_what_the_recipes_made(tmp_path: Path) -> None:
    write_onnx(model(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {MODEL_FILE, DATA_FILE}
    raw = (tmp_path / DATA_FILE).read_bytes()
    for name, info in external(tmp_path / MODEL_FILE).items():
        found = np.frombuffer(raw[info.offset : info.offset + info.length], DTYPES[name])
        np.testing.assert_array_equal(found.reshape(SHAPES[name]), ARRAYS[name])
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE)
    for output, found in zip(session.get_outputs(), session.run(None, {}), strict=True):
        np.testing.assert_array_equal(found, ARRAYS[output.name.removesuffix("_out")])


def test_tensors_start_on_pages_and_small_ones_stay_in_the_graph(tmp_path: Path) -> None:
    write_onnx(model(), tmp_path)
    infos = external(tmp_path / MODEL_FILE)
    # 4800 bytes take two pages. b's 1024 bytes are no more than EMBEDDED_BYTES.
    assert {name: (info.offset, info.length) for name, info in infos.items()} == {"a": (0, 4800), "c": (8192, 2800)}
    assert ARRAYS["b"].nbytes == EMBEDDED_BYTES and PAGE == 4096
    assert {info.location for info in infos.values()} == {DATA_FILE}


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []
    others: list[int] = []

    def recipe(name: str) -> NDArray[Any]:
        others.append(sum(ref() is not None for ref in alive))
        array = ARRAYS[name].copy()
        if array.nbytes > EMBEDDED_BYTES:
            alive.append(weakref.ref(array))
        return array

    built = model(recipe)
    write_onnx(built, tmp_path)
    assert len(alive) == 2 and set(others) == {0}
    assert all(ref() is None for ref in alive)


def test_the_size_is_known_before_anything_is_made(tmp_path: Path) -> None:
    def recipe(name: str) -> NDArray[Any]:
        raise AssertionError("made")

    assert data_bytes(model(recipe)) == 8192 + 4096
    write_onnx(model(), tmp_path)
    assert (tmp_path / DATA_FILE).stat().st_size == 8192 + 2800


def test_progress_is_told_of_every_tensor(tmp_path: Path) -> None:
    told: list[int] = []
    write_onnx(model(), tmp_path, progress=told.append)
    assert told == [4800, 2800]


def test_a_recipe_of_another_shape_is_our_own_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a is float32 \(30, 40\)"):
        write_onnx(model(lambda name: ARRAYS[name].T.copy()), tmp_path)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.int8])
@pytest.mark.parametrize("shape", [(70, 40), (67, 33), (5, 3)])
def test_small_types_are_stored_as_onnx_has_them(tmp_path: Path, dtype: Any, shape: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(-8, 8, shape).astype(dtype)
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g"), ir_version=11)
    value = add_lazy(graph, "w", ir.DataType.from_numpy(np.dtype(dtype)), shape, lambda: array)
    node = ir.node("Identity", [value])
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph.graph.append(node)
    graph.graph.outputs.append(node.outputs[0])
    told: list[int] = []
    write_onnx(graph, tmp_path, progress=told.append)
    size = -(-array.size // 2) if dtype is ml_dtypes.int4 else array.size
    assert told == ([size] if size > EMBEDDED_BYTES else [])
    (stored,) = onnx.load(tmp_path / MODEL_FILE).graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored).astype(np.float32), array.astype(np.float32))
