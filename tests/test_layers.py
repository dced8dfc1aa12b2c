"""The order of the layers, read from the source itself: runtime ← engines ← calibration ← compile."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["runtime", "engines", "calibration", "compile"]
# What only the compiler needs must not be imported, lazily either, by what runs on a device.
COMPILER_LIBRARIES = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors"}


def imported(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layers_above(layer: str) -> list[str]:
    return [f"megrez.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]]


def upward(source: str, layer: str) -> set[str]:
    return {
        name
        for name in imported(source)
        for above in layers_above(layer)
        if name == above or name.startswith(above + ".")
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_to_its_right(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    faults = {str(path.relative_to(ROOT)): found for path in files if (found := upward(path.read_text(), layer))}
    assert faults == {}


def test_the_runtime_names_no_library_of_the_compiler():
    faults = {
        str(path.relative_to(ROOT)): found
        for path in (ROOT / "runtime").rglob("*.py")
        if (found := {name.split(".")[0] for name in imported(path.read_text())} & COMPILER_LIBRARIES)
    }
    assert faults == {}


@pytest.mark.parametrize(
    ("source", "layer", "found"),
    [
        ("import megrez.compile", "runtime", {"megrez.compile"}),
        ("from megrez import engines", "runtime", {"megrez.engines"}),
        (
            "def f():\n    from megrez.compile.families.config import ModelConfig",
            "engines",
            {"megrez.compile.families.config"},
        ),
        ("from megrez.runtime import errors", "engines", set()),
        ("import megrez.compiler", "runtime", set()),
    ],
)
def test_the_scan_itself_sees_every_form_of_import(source, layer, found):
    assert found <= upward(source, layer) and bool(found) == bool(upward(source, layer))
