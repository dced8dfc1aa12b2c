"""The installed `megrez-compile`: Ctrl-C ends it as ever while its libraries are still being imported."""

import sys

from megrez.runtime.console import INTERRUPTED


def main() -> None:
    try:
        from megrez.compile.cli import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()
