"""The verbs of `megrez`, one module each; they compose the runtime and hold no logic of their own."""
