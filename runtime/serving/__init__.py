"""Many requests at once over one session: in-flight batching, prefix reuse, and `LLM`; knows no engine."""
