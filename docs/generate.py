"""Writes docs/targets.md from the table of targets: `make docs`; tests/test_docs.py compares the two."""

from pathlib import Path

from megrez.compile.commands.targets_table import as_markdown

PAGE = Path(__file__).parent / "targets.md"
TEXT = f"""# Targets

Written by `make docs` from engines/targets.py; `megrez-compile --list-targets` prints the same table.

{as_markdown()}

*Sensitive weights* are the projections that lose most by quantisation (values, and the outer down projections, unless
`--max-kl` chooses). *Algorithm* is the default one: `rtn` rounds to nearest, the others are calibrated; models of more
than a billion parameters are rounded to nearest for cpu-int4 and cuda-int4 unless `--algorithm gptq` or `--calib` is
given. Block sizes are the largest taken: rows that they would pad get smaller ones.
"""


def main() -> None:
    PAGE.write_text(TEXT, encoding="utf-8")


if __name__ == "__main__":
    main()
