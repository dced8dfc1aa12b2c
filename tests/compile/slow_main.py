"""Runs the `megrez-compile` command in a process of its own that says "writing" and waits in mid-write; not a test.

The graph is the test run's own, traced once.
"""

import sys
import time

from megrez.compile import cli
from megrez.compile.checkpoint.dummy import DummyCheckpoint
from megrez.compile.graph.export import trace
from tests.graphs import traced

read = DummyCheckpoint.read


def read_slowly(self, name):
    if name == "lm_head.weight":
        print("writing", flush=True)
        time.sleep(120)
    return read(self, name)


if sys.argv.pop(1) == "wait":
    DummyCheckpoint.read = read_slowly
trace.trace = traced
cli.main()
