"""Writes docs/targets.md from the table of targets: `make docs`; tests/test_docs.py checks that the page is current."""

from pathlib import Path

from megrez.compile.commands.targets_table import as_markdown

PAGE = Path(__file__).parent / "targets.md"
# Of float32: 64 bytes and a scale in place of 256.
INT8_SHARE = f"{(64 + 4) / 256:.0%}"
TEXT = f"""# Targets

Written by `make docs` from engines/targets.py; `megrez-compile --list-targets` prints the same table.

{as_markdown()}

*Sensitive weights* are the projections that lose most by quantisation: the value projections, and the down projections
of the first and the last eighth of the layers, unless `--max-kl` chooses them. *Algorithm* is the default one: `rtn`
rounds to nearest, the others use calibration data. Models of more than a billion parameters are calibrated on 2,048
tokens for cpu-int4, cpu-int4-b32 and cuda-int4, all others on 16,384 (`--calib-samples`, of 512 tokens each); models
without a tokenizer default to `rtn` wherever activations are not quantised per tensor. Block sizes are upper limits:
rows that would need padding get smaller blocks.

## The KV cache

`--kv f32|f16|int8` chooses the data type of the KV cache of cpu-* targets, when the bundle is compiled. `f16` takes
half of float32's memory, `int8` {INT8_SHARE} at 64 channels per head: each token of a KV head has a scale in float32.
Keys are transformed by a Hadamard matrix before they are rounded, and queries with them, which changes no score and
spreads the few large channels that keys have. The manifest states the format, its bytes per token, and what it costs:
the KL divergence from the same graph with a float32 cache, in windows of 512, 4,096 and 8,192 tokens, as far as the
context allows; models of more than a billion parameters are measured in windows of 512 only, `--fidelity-tokens 0`
skips it. float32 is the default: it needs no kernels of ours, so that the bundle runs where no C compiler was at hand
when megrez-compile was installed. cuda-* targets have no choice, because no GPU was at hand to test one on.

`megrez inspect` shows the bytes per token and the memory at full context. Opening a bundle with more slots and context
than this machine's memory holds is refused. Below that, a cache takes memory as it fills.
"""


def main() -> None:
    PAGE.write_text(TEXT, encoding="utf-8")


if __name__ == "__main__":
    main()
