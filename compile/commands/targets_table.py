"""The table of targets as text, for `--list-targets` and docs/targets.md."""

from megrez.engines.targets import TARGETS

HEADER = (
    "target",
    "weights",
    "sensitive weights",
    "embedding",
    "LM head",
    "activations",
    "KV cache",
    "algorithm",
    "devices",
)


def target_rows() -> list[tuple[str, ...]]:
    """One row per target, with the columns of HEADER; unquantised tensors have the target's float data type."""
    rows = []
    for target in TARGETS:
        formats = (target.weights, target.sensitive, target.embedding, target.head)
        named = (str(one or target.float_dtype) for one in formats)
        rows.append((target.name, *named, target.activations, target.kv_dtype, target.algorithm, target.devices))
    return rows


def as_text() -> str:
    """Columns aligned by spaces."""
    rows = [tuple(map(str.upper, HEADER)), *target_rows()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def as_markdown() -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| `" + row[0] + "` | " + " | ".join(row[1:]) + " |" for row in target_rows()]
    return "\n".join(lines)
