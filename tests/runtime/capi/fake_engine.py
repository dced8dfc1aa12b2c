"""Engines that need no library, named in manifests by what they do; imported by the Python of the tests' C programs.

fake: the next token is the sum of the context. slow: the same, 2 ms a step. failing: its second step fails.
"""

import sys
import time
import types

from megrez.runtime import engines
from megrez.runtime.errors import EngineError
from megrez.runtime.session import FakeSession


class Slow(FakeSession):
    def step(self, *batch, **named):
        time.sleep(0.002)
        return super().step(*batch, **named)


class Failing(FakeSession):
    steps = 0

    def step(self, *batch, **named):
        self.steps += 1
        if self.steps > 1:
            raise EngineError("the engine failed: try another one")
        return super().step(*batch, **named)


SESSIONS = {"fake": FakeSession, "slow": Slow, "failing": Failing}
CAPACITY = 1000


def _module(name, session):
    module = types.ModuleType(f"fake_engine_{name}")

    def open_session(bundle, *, threads, slots=1, capacity=None):
        vocab_size = bundle.manifest.architecture.vocab_size
        return session(vocab_size=vocab_size, capacity=capacity or CAPACITY, slots=slots)

    module.open_session = open_session
    sys.modules[module.__name__] = module
    return module.__name__


MODULES = {name: _module(name, session) for name, session in SESSIONS.items()}


def install():
    engines.MODULES.update(MODULES)
