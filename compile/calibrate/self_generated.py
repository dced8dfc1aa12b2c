"""What a model says when nothing is asked: the text that calibrates it best where none is given; knows no scales.

A model's own text is of the kind that it was trained on, in its languages, and needs no network. Source: Liu et al.,
LLM-QAT (2023). It is drawn from a draft of the model, rounded to nearest, that ONNX Runtime runs.
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

from megrez.compile.backends.engine import build_engine
from megrez.compile.bundle.writer import Content, describe, write_bundle
from megrez.compile.calibrate.text import CalibrationText, TextRequest, read_text
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.lowered import lowered
from megrez.compile.report import Report
from megrez.engines.targets import Target, find_target
from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Logits, Session

Ids = NDArray[np.int64]
SOURCE = "the model's own words"
# Near enough to the model to write as it does, and half the memory of 8 bits.
DRAFT = find_target("cpu-int4").with_block(32)
# Samples that are written side by side: each has a KV cache of its own.
AT_ONCE = 32


def calibration_text(
    checkpoint: Checkpoint, target: Target, request: TextRequest, context: int, work: Path, report: Report
) -> CalibrationText:
    """The text asked for; where none is, the model's own words if ONNX Runtime will run the target, which it needs.

    What is held out is always read from a text. work: the words are kept beside it until `forget_words`, so that an
    unfinished calibration finds them again. Raises UsageError as read_text does.
    """
    text = read_text(checkpoint.text, request, context)
    if request.path is not None or target.dialect != "ort":
        return text
    samples, length = text.tokens.shape
    seed = request.seed or 0
    key = hashlib.sha256(f"{checkpoint.fingerprint()} {samples} {length} {seed}".encode()).hexdigest()[:12]
    kept = work.with_name(f"{work.stem}.words-{key}.npy")
    if not kept.is_file():
        report.stage(f"writing {text.tokens.size} tokens in the model's own words")
        words = _own_words(checkpoint, samples, length, seed, work.parent, report)
        partial = kept.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, words)
        partial.replace(kept)
    tokens = np.load(kept)
    digest = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
    return dataclasses.replace(text, tokens=tokens, source=SOURCE, sha256=digest)


def forget_words(work: Path) -> None:
    """Remove the words that were written for calibrations at `work`."""
    for file in work.parent.glob(f"{glob.escape(work.stem)}.words-*.npy"):
        file.unlink(missing_ok=True)


def _own_words(checkpoint: Checkpoint, samples: int, length: int, seed: int, folder: Path, report: Report) -> Ids:
    assert checkpoint.text is not None
    tokens = checkpoint.text.tokens
    folder.mkdir(parents=True, exist_ok=True)
    content = Content(checkpoint=checkpoint, target=DRAFT, context=length, weights="checkpoint", record=None)
    with tempfile.TemporaryDirectory(prefix="draft-", dir=folder) as draft:
        model = lowered(checkpoint, DRAFT, length)
        path = Path(draft) / "bundle"
        write_bundle(path, describe(content), None, lambda made: build_engine(model, made, length, None, report))
        bos = tokens.bos if tokens.add_bos else None
        with closing(open_session(open_bundle(path), threads=None, slots=min(samples, AT_ONCE))) as session:
            parts = [
                speak(session, length, bos=bos, stop=tokens.stop, seed=seed + number)
                for number in range(-(-samples // session.slots))
            ]
        return np.concatenate(parts)[:samples]


def speak(session: Session, length: int, *, bos: int | None, stop: Collection[int], seed: int) -> Ids:
    """Tokens [slots, length], each drawn by its probability after those before it; the first at random.

    bos: leads every row, None for none. No id of `stop` is drawn by probability: every row goes on to its end.
    """
    random = np.random.default_rng(seed)
    rows = np.arange(session.slots)
    tokens = np.empty((session.slots, length), np.int64)
    given = 1
    tokens[:, 0] = random.integers(session.vocab_size, size=len(rows))
    if bos is not None and length > 1:
        tokens[:, 0], tokens[:, 1], given = bos, tokens[:, 0].copy(), 2
    for at in range(length - 1):
        logits = session.step(tokens[:, at], np.full(len(rows), at, np.int32), rows)
        if at + 1 < given:
            continue
        logits[:, list(stop)] = -np.inf
        tokens[:, at + 1] = _draw(logits, random)
    return tokens


def _draw(logits: Logits, random: np.random.Generator) -> Ids:
    """Of each row of logits [N, vocab_size], an id by its probability."""
    sums = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1, dtype=np.float64)
    wanted = random.random(len(sums)) * sums[:, -1]
    return np.array([np.searchsorted(row, at, side="right") for row, at in zip(sums, wanted, strict=True)])
