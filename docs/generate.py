"""Writes docs/targets.md from the table of targets: `make docs`; tests/test_docs.py checks that the page is current."""

from pathlib import Path

from megrez.compile.commands.targets_table import as_markdown

PAGE = Path(__file__).parent / "targets.md"
TEXT = f"""# Targets

Written by `make docs` from engines/targets.py; `megrez-compile --list-targets` prints the same table.

{as_markdown()}

*Sensitive weights* are the projections that lose most by quantisation: the value projections, and the down projections
of the first and the last eighth of the layers, unless `--max-kl` chooses them. *Algorithm* is the default one: `rtn`
rounds to nearest, the others use calibration data. **Models of more than a billion parameters default to `rtn` for
cpu-int4, cpu-int4-b32 and cuda-int4**, unless `--algorithm gptq`, `--calib` or `--max-kl` is given; models without a
tokenizer do so wherever activations are not quantised per tensor. Block sizes are upper limits: rows that would need
padding get smaller blocks.
"""


def main() -> None:
    PAGE.write_text(TEXT, encoding="utf-8")


if __name__ == "__main__":
    main()
