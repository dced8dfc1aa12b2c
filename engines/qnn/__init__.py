"""Qualcomm NPUs: `build` compiles a folder of static graphs to contexts, `session` runs them.

The same graphs run on ONNX Runtime's CPU kernels as the reference, see `reference`.
"""

EMBEDDING_FILE, ROTARY_FILE = "embedding.npy", "rotary.npy"
