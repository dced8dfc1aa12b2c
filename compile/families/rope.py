"""The rotary embedding's parameters, from configs of transformers 4 and 5; computes no angle."""

import math
from typing import Any

_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # rope_type: (required, optional)
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}


def read_rope(data: dict[str, Any], positions: int, faults: list[str]) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 standardises it; errors are added to `faults`.

    data: a whole config.json. positions: its max_position_embeddings, the scalings' default original length.
    """
    found = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        faults.append(f"rope_parameters is {found!r}: one rotary embedding for all layers is supported")
        return {}
    values = {"rope_theta": data.get("rope_theta") or 10000.0, **found}
    kind = values.get("rope_type", values.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        faults.append(f"rope type {kind!r} is not supported: {', '.join(_KEYS)} are")
        return {}
    _refuse_partial_rotary(data, found, faults)
    if kind in ("llama3", "yarn"):
        values.setdefault("original_max_position_embeddings", positions)
        # The config's own field takes precedence, as in transformers.
        values["original_max_position_embeddings"] = data.get(
            "original_max_position_embeddings", values["original_max_position_embeddings"]
        )
    required, optional = _KEYS[kind]
    for key in ("rope_theta", *required):
        if not _is_positive(values.get(key)):
            faults.append(f"rope type {kind!r} needs a positive {key}, found {values.get(key)!r}")
    kept = {key: values[key] for key in ("rope_theta", *required, *optional) if values.get(key) is not None}
    return {"rope_type": kind, **kept}


def _refuse_partial_rotary(data: dict[str, Any], rope: dict[str, Any], faults: list[str]) -> None:
    share = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if share not in (None, 1):
        faults.append(f"partial_rotary_factor is {share!r}: only whole heads can be rotated")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
