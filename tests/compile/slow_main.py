"""Runs the `megrez-compile` command in a process of its own that says "writing" and waits in mid-write; not a test.

The graph is the test run's own, traced before this process starts, which imports nothing that traces.
"""

import sys
import time
import types
from pathlib import Path

from megrez.compile import cli
from megrez.compile.checkpoint.dummy import DummyCheckpoint

sys.path.append(str(Path(__file__).parents[2]))
read = DummyCheckpoint.read


def read_slowly(self, name):
    if name == "lm_head.weight":
        print("writing", flush=True)
        time.sleep(120)
    return read(self, name)


def traced(config, context):
    from tests import traces

    return traces.traced(config, context)


DummyCheckpoint.read = read_slowly
module = types.ModuleType("megrez.compile.graph.export.trace")
module.trace = traced
sys.modules[module.__name__] = module
cli.main()
