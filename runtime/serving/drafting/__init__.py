"""Speculative decoding: drafters guess tokens, and the engine verifies several of them in one step."""
