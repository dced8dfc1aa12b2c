"""The default of -o: a folder in the current one, named after model and target."""

from pathlib import Path

from megrez.runtime.errors import UsageError

STAGED_SUFFIX = "-onnx"


def default_output(model: str, target: str, *, staged: bool) -> Path:
    """`<model's name>-<target>`, with STAGED_SUFFIX for a staged bundle; raises UsageError where it exists."""
    ending = STAGED_SUFFIX if staged else ""
    return _unused(Path(f"{model_name(model)}-{target}{ending}"))


def output_of_staged(staged: str, target: str) -> Path:
    """The default for a staged bundle's engine: the staged bundle's name without STAGED_SUFFIX."""
    name = Path(staged).resolve().name
    stem = name.removesuffix(STAGED_SUFFIX)
    return _unused(Path(stem if stem != name and stem.endswith(target) else f"{name}-{target}"))


def model_name(model: str) -> str:
    """A folder's name, a .gguf file's without its suffix, the folder of a config.json, or a hub id's last part."""
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    if path.suffix == ".json":
        return path.resolve().parent.name
    return path.resolve().name


def _unused(output: Path) -> Path:
    """`output`; raises UsageError where it exists: a default never replaces anything."""
    if output.exists() or output.is_symlink():
        raise UsageError(f"{output} exists already: name it with  -o {output}  to replace it, or choose another -o")
    return output
