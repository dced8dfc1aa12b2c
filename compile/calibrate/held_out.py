"""Held-out text and the float32 model's hidden states for it, the reference for a bundle's fidelity.

The float32 model runs layer by layer, so it need not fit into memory.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.layerwise import reference_hidden_states
from megrez.calibration.reference.decoder import DecoderShape
from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.calibration.reference.hidden_session import HiddenSession
from megrez.calibration.reference.model import Model
from megrez.compile.calibrate.request import Job
from megrez.compile.calibrate.text import CalibrationText, TextRequest, read_text
from megrez.compile.checkpoint.derived import file_of
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.graph.rope import rotary_tables
from megrez.compile.report import Report
from megrez.engines.ort.cuda import open_on_cpu
from megrez.engines.targets import Target
from megrez.runtime.bundle import Bundle
from megrez.runtime.engines import open_session
from megrez.runtime.manifest import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """tokens: [windows, length]. reference: `model`'s hidden states after its last layer, [windows, length, H].

    model: in float32, for samples of `length`. source: the text's name.
    """

    tokens: NDArray[np.int64]
    model: Model
    reference: NDArray[np.float32]
    source: str


def model_of(checkpoint: Checkpoint, positions: int) -> Model:
    """The checkpoint as calibration reads it, for samples of up to `positions` tokens."""
    config = checkpoint.config
    cos, sin = rotary_tables(config, positions)
    return Model(
        read=checkpoint.read,
        names=tuple(expected_tensors(config)),
        shape=DecoderShape(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            cos=cos,
            sin=sin,
        ),
        windows=config.sliding_windows,
    )


def read_held_out(checkpoint: Checkpoint, text: CalibrationText, progress: Callable[[int], None]) -> HeldOut:
    """The held-out part of a text, and the float32 model's hidden states for it."""
    length = text.tokens.shape[1]
    tokens = text.held_out.reshape(-1, length)
    model = model_of(checkpoint, length)
    reference = reference_hidden_states(model, tokens, progress)
    return HeldOut(tokens=tokens, model=model, reference=reference, source=text.held_out_source)


def read_reference(job: Job, request: TextRequest, report: Report) -> HeldOut | None:
    """The held-out part of the request's text, for a build without calibration.

    None for unquantised weights, without a tokenizer, and for targets that no CPU runs.
    """
    measurable = (
        job.request.weights == "checkpoint"
        and job.target.weights is not None
        and job.target.fidelity_engine is not None
    )
    if not measurable or job.checkpoint.text is None or request.fidelity_tokens == 0:
        return None
    text = read_text(job.checkpoint.text, request, job.context)
    report.stage(f"reading {text.held_out.size} tokens of {text.held_out_source} with the float32 model")
    # Not the rotated checkpoint: the model is the same, and nothing needs to be rotated.
    original = file_of(job.checkpoint)
    return read_held_out(original, text, report.layers(original.config.num_hidden_layers))


def measure_bundle(bundle: Bundle, target: Target, held_out: HeldOut) -> Measured:
    """The fidelity of `bundle` to the float32 model, on the target's fidelity_engine."""
    windows, length = held_out.tokens.shape
    head = held_out.model.lm_head()
    vocab_size = len(head.weight)
    hidden = held_out.reference.reshape(windows * length, -1)
    reference = HiddenSession(hidden, head, window=length, vocab_size=vocab_size)
    simulated = target.fidelity_engine != target.engine
    opener = open_on_cpu if simulated else open_session
    with closing(opener(bundle, threads=None, capacity=length)) as session:
        found = measure_fidelity(session, reference, held_out.tokens.reshape(-1), window=length)
    return Measured(of="simulation" if simulated else "bundle", text=held_out.source, fidelity=found)
