"""ONNX Runtime: `session` opens the models that megrez.engines.onnx_files writes."""

MODEL_FILE = "model.onnx"
