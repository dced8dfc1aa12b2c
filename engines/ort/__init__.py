"""ONNX Runtime: `session` opens what megrez.engines.onnx_files writes."""

MODEL_FILE = "model.onnx"
