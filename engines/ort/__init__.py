"""ONNX Runtime: `build` writes what `session` opens."""

MODEL_FILE = "model.onnx"
