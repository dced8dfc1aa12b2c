"""TensorRT and TensorRT-RTX: `build` writes what `session` opens."""

PLAN_FILE = "model.plan"
