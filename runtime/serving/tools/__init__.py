"""Function calls in a model's answers: written into prompts, parsed from streams and enforced; independent of HTTP."""
