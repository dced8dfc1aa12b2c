"""The verbs of `megrez`, one module each; they combine parts of the runtime and have no logic of their own."""
