"""Self-generated calibration data: text sampled from the model itself, where none is fixed; knows no scales.

It resembles the training data, in its languages, and needs no network (LLM-QAT, Liu et al., 2023). It is sampled from a
draft of the model, quantised by RTN, on ONNX Runtime.
"""

import dataclasses
import glob
import hashlib
import tempfile
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.compile.backends.backend import Lowered
from megrez.compile.backends.onnxruntime import GraphFiles
from megrez.compile.bundle.describe import Content, describe
from megrez.compile.bundle.writer import new_bundle
from megrez.compile.calibrate.text import CalibrationText, TextRequest, read_text
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.lowered import lowered
from megrez.compile.report import Report
from megrez.engines.targets import Target, find_target
from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Logits, Session

Ids = NDArray[np.int64]
SOURCE = "self-generated text"
# Close enough to the model, in half the memory of 8 bits.
DRAFT = find_target("cpu-int4").with_block(32)
# Samples that are generated in one batch: each has its own KV cache.
BATCH = 32
# Where there are fewer, each is joined from pieces of this length at least: the same number of tokens in fewer steps,
# and of more kinds of text.
LEAST_PIECE = 128


def calibration_text(
    checkpoint: Checkpoint, target: Target, request: TextRequest, context: int, work: Path, report: Report
) -> CalibrationText:
    """The requested text; where none is requested, self-generated text for ONNX Runtime's targets.

    The held-out part is always read from a text. work: the tokens are kept beside it until `discard_generated`, so that
    an interrupted calibration finds them again. Raises UsageError as read_text does.
    """
    text = read_text(checkpoint.text, request, context)
    if request.path is not None or target.dialect != "ort":
        return text
    samples, length = text.tokens.shape
    seed = request.seed or 0
    key = hashlib.sha256(f"{checkpoint.fingerprint()} {samples} {length} {seed}".encode()).hexdigest()[:12]
    kept = work.with_name(f"{work.stem}.generated-{key}.npy")
    if not kept.is_file():
        report.stage(f"sampling {text.tokens.size} tokens from the model itself")
        generated = _generate(checkpoint, samples, length, seed, work.parent, report)
        partial = kept.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, generated)
        partial.replace(kept)
    tokens = np.load(kept)
    digest = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
    return dataclasses.replace(text, tokens=tokens, source=SOURCE, sha256=digest)


def discard_generated(work: Path) -> None:
    """Remove the tokens that were sampled for calibrations at `work`."""
    for file in work.parent.glob(f"{glob.escape(work.stem)}.generated-*.npy"):
        file.unlink(missing_ok=True)


def _generate(checkpoint: Checkpoint, samples: int, length: int, seed: int, folder: Path, report: Report) -> Ids:
    assert checkpoint.text is not None
    tokens = checkpoint.text.tokens
    folder.mkdir(parents=True, exist_ok=True)
    pieces = pieces_of_sample(samples, length)
    rows, columns = samples * pieces, length // pieces
    with tempfile.TemporaryDirectory(prefix="draft-", dir=folder) as scratch:
        draft = _write_draft(checkpoint, columns, Path(scratch) / "bundle", report)
        bos = tokens.bos if tokens.add_bos else None
        with closing(open_session(open_bundle(draft), threads=None, slots=min(rows, BATCH))) as session:
            parts = [
                sample_tokens(session, columns, bos=bos, stop=tokens.stop, seed=seed + number)
                for number in range(-(-rows // session.slots))
            ]
        return np.concatenate(parts)[:rows].reshape(samples, length)


def pieces_of_sample(samples: int, length: int) -> int:
    """Of how many pieces, sampled in one batch, each of the samples is joined; their lengths are equal."""
    most = min(BATCH // samples, length // LEAST_PIECE)
    return next((pieces for pieces in range(most, 1, -1) if length % pieces == 0), 1)


def _write_draft(checkpoint: Checkpoint, context: int, output: Path, report: Report) -> Path:
    content = Content(checkpoint=checkpoint, target=DRAFT, context=context, weights="checkpoint", record=None)
    graph = Lowered(model=lowered(checkpoint, DRAFT, context))
    with new_bundle(output) as new:
        GraphFiles().build(graph, new.folder, report)
        new.finish(describe(content), None, None)
    return output


def sample_tokens(session: Session, length: int, *, bos: int | None, stop: Collection[int], seed: int) -> Ids:
    """Tokens [slots, length], sampled at temperature 1; the first uniformly.

    bos: the first token of every sequence, None for none. No id of `stop` is sampled, so sequences have full length.
    """
    random = np.random.default_rng(seed)
    every = np.arange(session.slots)
    tokens = np.empty((session.slots, length), np.int64)
    fixed = 1
    tokens[:, 0] = random.integers(session.vocab_size, size=len(every))
    if bos is not None and length > 1:
        tokens[:, 0], tokens[:, 1], fixed = bos, tokens[:, 0].copy(), 2
    for at in range(length - 1):
        logits = session.step(tokens[:, at], np.full(len(every), at, np.int32), every)
        if at + 1 < fixed:
            continue
        logits[:, list(stop)] = -np.inf
        tokens[:, at + 1] = _draw(logits, random)
    return tokens


def _draw(logits: Logits, random: np.random.Generator) -> Ids:
    """Sample an id from each of the logits [N, vocab_size]."""
    sums = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1, dtype=np.float64)
    drawn = random.random(len(sums)) * sums[:, -1]
    return np.array([np.searchsorted(one, at, side="right") for one, at in zip(sums, drawn, strict=True)])
