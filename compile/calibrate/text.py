"""The text of the calibration data, and the held-out text for fidelity; knows no weights."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megrez.compile.calibrate.text_records import Ids, Tokenizer, default_name, read_default, read_file
from megrez.compile.checkpoint.protocol import Checkpoint, TextAssets
from megrez.compile.checkpoint.tensors import parameter_count
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError

WINDOW = 512
# Samples by default, and of models above LARGE parameters on ONNX Runtime's targets: minutes instead of an hour.
SAMPLES, LARGE_SAMPLES = 32, 4
LARGE = 1_000_000_000
REMEDY = "lower --calib-samples or --calib-tokens, or give a longer text"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationText:
    """source, held_out_source: a file's name without its folder, or that of the default text.

    tokens: [samples, length], each read from an empty cache; a sample begins with BOS where the model uses one.
    held_out: [M] consecutive tokens for measuring fidelity, none of them in `tokens`; without an added BOS.
    sha256: of `tokens` as little-endian int64, in hexadecimal. seed: None where the first tokens were taken.
    """

    tokens: Ids
    held_out: Ids
    source: str
    held_out_source: str
    sha256: str
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """Which text; the fields are those of read_calibration_text.

    samples: None takes SAMPLES or LARGE_SAMPLES, see `with_samples`.
    length: None takes WINDOW, or the context where that is shorter. fidelity_tokens: how many tokens to hold out,
    rounded up to whole samples; 0 for none.
    """

    path: Path | None = None
    samples: int | None = None
    length: int | None = None
    seed: int | None = None
    fidelity_tokens: int = 2048

    @property
    def sample_count(self) -> int:
        """`samples`, or the default of most models."""
        return SAMPLES if self.samples is None else self.samples


def with_samples(request: TextRequest, checkpoint: Checkpoint, target: Target) -> TextRequest:
    """`request` with its number of samples chosen."""
    if request.samples is not None:
        return request
    is_large = target.dialect == "ort" and parameter_count(checkpoint.config) > LARGE
    return dataclasses.replace(request, samples=LARGE_SAMPLES if is_large else SAMPLES)


def sample_length(request: TextRequest, context: int) -> int:
    """Tokens of a sample."""
    return min(WINDOW, context) if request.length is None else request.length


def read_text(assets: TextAssets | None, request: TextRequest, context: int) -> CalibrationText:
    """The request's text; raises UsageError for samples longer than the context, and as read_calibration_text does."""
    length = sample_length(request, context)
    if length < 2 and request.length is None:
        raise UsageError(
            f"--context is {context}: calibration and fidelity need samples of at least 2 tokens: choose 2 or more, or "
            "leave both out with  --algorithm rtn --fidelity-tokens 0  where the target allows it"
        )
    if request.fidelity_tokens < 0:
        raise UsageError(f"--fidelity-tokens is {request.fidelity_tokens}: measure on 0 or more")
    if length > context:
        raise UsageError(f"--calib-tokens is {length}, the context is {context}: lower it or choose a longer context")
    return read_calibration_text(
        assets,
        request.path,
        samples=request.sample_count,
        length=length,
        held_out=-(-request.fidelity_tokens // max(length, 1)) * length,
        seed=request.seed,
    )


def read_calibration_text(
    assets: TextAssets | None, path: Path | None, *, samples: int, length: int, held_out: int, seed: int | None
) -> CalibrationText:
    """Cut a text into windows of `length` tokens and take `samples` of them.

    path: a UTF-8 text, or a .jsonl file whose lines are strings, {"text": …} or {"messages": […]}, which the model's
    chat template renders. None reads the default, pydoc_data.topics (see text_records.read_default).
    seed: None takes the first windows and holds out the text after them; an int draws windows from the whole text
    without replacement and holds out others. Where a file is too short for that, the default text is held out. Raises
    UsageError when the request cannot be met; it says what to change.
    """
    _check_request(samples, length, held_out, seed)
    if assets is None:
        raise UsageError("the checkpoint has no tokenizer, so no text can calibrate it: add its tokenizer.json")
    tokenizer = Tokenizer(assets)
    source = default_name() if path is None else path.name
    pieces = read_default(tokenizer) if path is None else read_file(path, tokenizer)
    # An upper bound: samples with an added BOS take one token less.
    ids = _read(pieces, samples * length + held_out if seed is None else None)
    bos = assets.tokens.bos if assets.tokens.add_bos else None
    windows = _windows(ids, length, bos)
    if len(windows) < samples:
        raise UsageError(
            f"{samples} samples of {length} tokens were requested and {source} has {len(ids)} tokens, "
            f"enough for {len(windows)}: {REMEDY}"
        )
    drawn, rest = _draw(ids, windows, samples, seed)
    tokens = np.stack([_lead(window, length, bos) for window in drawn])
    is_long_enough = len(rest) >= held_out
    return CalibrationText(
        tokens=tokens,
        held_out=rest[:held_out].copy()
        if is_long_enough
        else _default_held_out(tokenizer, held_out, used=path is None),
        source=source,
        held_out_source=source if is_long_enough else default_name(),
        sha256=hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(),
        seed=seed,
    )


def _check_request(samples: int, length: int, held_out: int, seed: int | None) -> None:
    if samples < 1:
        raise UsageError(f"--calib-samples is {samples}: calibrate on at least 1")
    if length < 2:
        raise UsageError(f"--calib-tokens is {length}: a sample takes at least 2 tokens")
    if held_out < 0:
        raise UsageError(f"{held_out} held-out tokens were requested: give 0 or more")
    if seed is not None and seed < 0:
        raise UsageError(f"the seed of the calibration text is {seed}: give 0 or more")


def _read(pieces: Iterator[Ids], count: int | None) -> Ids:
    """At least `count` tokens where there are as many; all of them for None."""
    parts, total = [np.empty(0, np.int64)], 0
    for piece in pieces:
        parts.append(piece)
        total += len(piece)
        if count is not None and total >= count:
            break
    return np.concatenate(parts)


def _windows(ids: Ids, length: int, bos: int | None) -> list[slice]:
    """The slice of the text for each sample of `length` tokens; one shorter where a BOS is to be added."""
    windows, start = [], 0
    while start < len(ids):
        stop = start + length - (bos is not None and int(ids[start]) != bos)
        if stop > len(ids):
            break
        windows.append(slice(start, stop))
        start = stop
    return windows


def _draw(ids: Ids, windows: list[slice], samples: int, seed: int | None) -> tuple[list[Ids], Ids]:
    """The tokens of `samples` windows, and those that can be held out, in their order."""
    if seed is None:
        return [ids[window] for window in windows[:samples]], ids[windows[samples - 1].stop :]
    drawn = [ids[windows[at]] for at in np.random.default_rng(seed).permutation(len(windows))]
    return drawn[:samples], np.concatenate([ids[:0], *drawn[samples:]])


def _lead(window: Ids, length: int, bos: int | None) -> Ids:
    return window if bos is None or len(window) == length else np.concatenate([np.array([bos], np.int64), window])


def _default_held_out(tokenizer: Tokenizer, count: int, *, used: bool) -> Ids:
    """The first `count` tokens of the default text, unless they have been `used`."""
    ids = np.empty(0, np.int64) if used else _read(read_default(tokenizer), count)[:count]
    if len(ids) < count:
        raise UsageError(f"{count} held-out tokens were requested and the text has too few left: {REMEDY}")
    return ids
