"""A tiny model compiled for cpu-int4, for what needs a bundle and no answers; not a test.

python -m tests.tiny_bundle FOLDER
"""

import sys
import tempfile
from pathlib import Path

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.commands.console_report import ConsoleReport
from megrez.compile.pipeline import Request, compile_bundle
from megrez.engines.targets import find_target
from tests.models import make_checkpoint

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, ConsoleReport() as report:
        checkpoint = open_checkpoint(str(make_checkpoint(Path(folder), hidden=128, heads=4, intermediate=256)))
        request = Request(checkpoint=checkpoint, target=find_target("cpu-int4"), output=Path(sys.argv[1]), context=512)
        compile_bundle(request, report)
