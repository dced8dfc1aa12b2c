"""The graph of a checkpoint in a target's dialect, with lazy weights; knows no bundle.

torch takes seconds to import, so it is imported here and not before a request is checked.
"""

import onnx_ir as ir

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.dialects import InputScale, lower
from megrez.engines.targets import Target


def lowered(
    checkpoint: Checkpoint, target: Target, context: int, input_scale: InputScale = lambda name: None
) -> ir.Model:
    """For sequences of up to `context` tokens; input_scale as in megrez.compile.graph.dialects.lower."""
    from megrez.compile.graph.export.trace import trace
    from megrez.compile.graph.weights import bind

    model = trace(checkpoint.config, context)
    bind(model, checkpoint, context)
    lower(model, checkpoint, target, input_scale)
    return model
