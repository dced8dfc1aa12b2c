"""The entry point of `megrez-compile`: Ctrl-C is handled also while libraries are imported."""

import sys

from megrez.runtime.console import INTERRUPTED


def main() -> None:
    try:
        from megrez.compile.cli import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()
