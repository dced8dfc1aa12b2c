"""Functions for Family.sliding_windows, which layers have a sliding window.

Each takes config.json's fields with the family's defaults, the number of layers and a list for faults, and returns, per
layer, how many tokens a position attends to (itself included), or None for all.
"""

from collections.abc import Mapping
from typing import Any

from megrez.compile.families.fields import read_count

KINDS = ("full_attention", "sliding_attention")


def no_windows(data: Mapping[str, Any], layers: int, faults: list[str]) -> tuple[int | None, ...]:
    """No layer has one."""
    return (None,) * layers


def one_window(data: Mapping[str, Any], layers: int, faults: list[str]) -> tuple[int | None, ...]:
    """`sliding_window` in every layer; null disables it."""
    return (_window(data, faults),) * layers


def windows_by_layer(data: Mapping[str, Any], layers: int, faults: list[str]) -> tuple[int | None, ...]:
    """Where `use_sliding_window` is true: the layers that `layer_types` names, or those from `max_window_layers` on."""
    window = _window(data, faults) if data.get("use_sliding_window") is True else None
    first, kinds = data.get("max_window_layers"), data.get("layer_types")
    if kinds is None and window is not None:
        if type(first) is int:
            return tuple(window if i >= first else None for i in range(layers))
        faults.append(f"max_window_layers is {first!r}, not an integer")
    if kinds is None:
        return (None,) * layers
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        faults.append(f"layer_types must name full_attention or sliding_attention for {layers} layers, found {kinds}")
        return (None,) * layers
    if window is None and "sliding_attention" in kinds:
        faults.append("layer_types has sliding_attention, but use_sliding_window and sliding_window give no window")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(data: Mapping[str, Any], faults: list[str]) -> int | None:
    return None if data.get("sliding_window") is None else read_count(data, "sliding_window", faults)
