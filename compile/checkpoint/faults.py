"""Errors in the shapes of a checkpoint's tensors, as one line; knows no file format."""

from collections.abc import Mapping

from megrez.compile.checkpoint.tensors import expected_tensors, shape_fields
from megrez.compile.families.config import ModelConfig
from megrez.runtime.errors import CheckpointError

SHOWN = 6


def shape_faults(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, misshapen or unexpected in `shapes`, the stored tensors, for a model of `config`."""
    faults = []
    fields = shape_fields(config)
    for name, shape in expected_tensors(config).items():
        if name not in shapes:
            faults.append(_missing(name, config))
        elif shapes[name] != shape:
            faults.append(_misshapen(name, shapes[name], shape, fields[name]))
    return faults + [_surplus(name) for name in shapes if _changes_the_model(name, fields, config)]


def raise_faults(source: str, faults: list[str], remedy: str) -> None:
    """Raise CheckpointError on any fault: the first few in full, how many more there are, and the remedy."""
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise CheckpointError(f"{source} cannot be compiled: {'; '.join(faults[:SHOWN])}{more}: {remedy}")


def _missing(name: str, config: ModelConfig) -> str:
    if name == "lm_head.weight":
        return "lm_head.weight is missing, though the config does not tie it (tie_word_embeddings is false)"
    if name.startswith("model.layers."):
        return f"{name} is missing (num_hidden_layers is {config.num_hidden_layers})"
    return f"{name} is missing"


def _misshapen(name: str, found: tuple[int, ...], expected: tuple[int, ...], fields: tuple[str, ...]) -> str:
    fault = f"{name} is {list(found)}, the config says {list(expected)}"
    if len(found) != len(expected):
        return fault
    wrong = [field for field, stored, needed in zip(fields, found, expected, strict=True) if stored != needed]
    return f"{fault} ({', '.join(wrong)})"


def _changes_the_model(name: str, fields: Mapping[str, tuple[str, ...]], config: ModelConfig) -> bool:
    # Layers past the last and buffers can be left out; a bias or norm inside a kept layer cannot.
    inside = any(name.startswith(f"model.layers.{layer}.") for layer in range(config.num_hidden_layers))
    return inside and name not in fields and name.endswith((".bias", "_norm.weight", "layernorm.weight"))


def _surplus(name: str) -> str:
    return f"{name} is stored, but the config has no such tensor"
