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


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    found = {}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("megrez", *parts)).removesuffix(".__init__")] = path
    return found


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules that each import one another, by way of others too."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = set(imports[start])
        while left:
            seen |= left
            left = {further for name in left for further in imports[name]} - seen
        return seen

    behind = {name: reached(name) for name in imports}
    return {
        frozenset(other for other in behind[name] if name in behind[other]) for name in imports if name in behind[name]
    }


def test_no_modules_import_one_another_lazily_either():
    files = modules()
    assert "megrez.runtime.session" in files and "megrez.engines.ort" in files
    imports = {name: imported(path.read_text()) & files.keys() - {name} for name, path in files.items()}
    assert circles(imports) == set()


def test_a_circle_is_seen_by_way_of_others_too():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a", "e"}}
    assert circles(imports) == {frozenset("abc"), frozenset("de")}


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
