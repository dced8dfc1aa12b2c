"""Runs the `megrez` command in a process of its own with an engine that answers on cue; not a test itself.

Environment: SAYS, the answer; NAP, seconds per decode step; CAPACITY, the context.
"""

import os
import sys
import time
import types

from megrez.runtime import cli, engines
from megrez.runtime.text import Text


def open_session(bundle, *, threads, slots=1, capacity=None):
    import numpy as np

    script = [*Text.open(bundle).encode(os.environ.get("SAYS", "hello")), bundle.manifest.tokens.stop[0]]

    class Session:
        slots, vocab_size, capacity = 1, bundle.manifest.architecture.vocab_size, int(os.environ.get("CAPACITY", 400))
        prompt = 0

        def step(self, tokens, starts, logits_index, *, slots=None, counts=None):
            if np.size(tokens) > len(logits_index):  # a prompt: of a draft, all logits are wanted
                self.prompt = int(starts[0]) + np.size(tokens)
            time.sleep(float(os.environ.get("NAP", 0)))
            logits = np.zeros((len(logits_index), self.vocab_size), np.float32)
            for row, at in enumerate(logits_index):
                logits[row, script[(int(starts[0]) + at + 1 - self.prompt) % len(script)]] = 9
            return logits

        def close(self):
            pass

    return Session()


module = types.ModuleType("fake_engine_of_fake_main")
module.open_session = open_session
sys.modules[module.__name__] = module
engines.MODULES["fake"] = module.__name__
cli.main()
