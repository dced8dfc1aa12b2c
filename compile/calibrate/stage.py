"""The calibration stage: from a checkpoint, a target and a text to scales on disk; knows no graph and no option."""

import glob
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.layerwise import HeldOutResult, calibrate_layers
from megrez.calibration.recipe import Recipe
from megrez.calibration.results.record import SCHEMA_VERSION, Record, read_record
from megrez.calibration.results.store import Store
from megrez.compile.calibrate.held_out import HeldOut, model_of, read_held_out
from megrez.compile.calibrate.self_generated import discard_generated
from megrez.compile.calibrate.text import CalibrationText
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.graph.precision import LM_HEAD_TABLES, Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.targets import Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import CheckpointError, MegrezError, UsageError
from megrez.runtime.manifest import Calibration

# Name on the command line -> smoothing, and whether weights are quantised by GPTQ.
ALGORITHMS: dict[str, tuple[str | None, bool]] = {
    "rtn": (None, False),
    "smoothquant": ("smoothquant", False),
    "awq": ("awq", False),
    "gptq": (None, True),
    "smoothquant+gptq": ("smoothquant", True),
    "awq+gptq": ("awq", True),
}


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    target: Target,
    algorithm: str,
    text: CalibrationText,
    path: Path,
    progress: Callable[[int], None],
    *,
    reuse: bool = False,
    simulate: bool = True,
) -> tuple[Record, HeldOut]:
    """Calibrate, and write the scales to `path` and their matrices to a folder beside it.

    An interrupted run of the same request is resumed; with `reuse`, a finished one is reused. Without `simulate` the
    record states no fidelity: it is to be measured on the bundle.
    Raises CheckpointError for weights that are not finite, MegrezError when the scales cannot be written.
    """
    smoothing, gptq = ALGORITHMS[algorithm]
    weight_format = quantized_format_of(checkpoint, target)
    recipe = Recipe(smoothing=smoothing, gptq=gptq, input_type=target.input_type, weight_format=weight_format)
    fingerprint = checkpoint.fingerprint()
    samples, length = text.tokens.shape
    held_out = text.held_out.reshape(-1, length)
    tokens = np.concatenate([text.tokens, held_out])
    digest = _digest(checkpoint, fingerprint, recipe, algorithm, tokens, samples, simulate)
    folder = path.with_name(f"{path.stem}.{digest[:12]}")
    if reuse and (record := _finished(path, folder)) is not None:
        return record, read_held_out(checkpoint, text, progress)
    model = model_of(checkpoint, length)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = Store(folder)
        result = calibrate_layers(model, tokens, samples, recipe, store, progress, simulate=simulate)
        record = _record(checkpoint, target, algorithm, fingerprint, text, result, store)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(record.to_json(), encoding="utf-8")
        partial.replace(path)
        store.finish()
    except CheckpointError:
        store.discard()  # the checkpoint has to change
        raise
    except OSError as error:
        raise MegrezError(
            f"the scales {path} cannot be written ({error.strerror}): free some space or choose another -o"
        ) from error
    return record, HeldOut(tokens=held_out, model=model, reference=result.reference, source=text.held_out_source)


def discard(work: Path) -> None:
    """Remove the calibrations for builds of one bundle: the last one, and those of other requests."""
    work.unlink(missing_ok=True)
    discard_generated(work)
    for folder in work.parent.glob(f"{glob.escape(work.stem)}.{'[0-9a-f]' * 12}"):
        shutil.rmtree(folder, ignore_errors=True)


def _finished(path: Path, folder: Path) -> Record | None:
    """The scales at `path`, if their matrices are complete and in `folder`."""
    try:
        record = read_record(path)
    except UsageError:
        return None
    return record if {(path.parent / file.path).parent for file in record.files} == {folder} else None


def _record(
    checkpoint: Checkpoint,
    target: Target,
    algorithm: str,
    fingerprint: str,
    text: CalibrationText,
    result: HeldOutResult,
    store: Store,
) -> Record:
    samples, length = text.tokens.shape
    return Record(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        algorithm=algorithm,
        input_type=target.input_type,
        finer=None if target.higher_precision is None else tuple(sorted(target.higher_precision)),
        model=checkpoint.source,
        model_sha256=fingerprint,
        text=Calibration(source=text.source, sha256=text.sha256, samples=samples, tokens=length, seed=text.seed),
        fidelity=result.fidelity,
        groups=store.progress.groups,
        files=store.progress.files,
    )


def quantized_format_of(checkpoint: Checkpoint, target: Target) -> Callable[[str], WeightFormat | None]:
    """The formats of the matrices that calibration quantises; None where it does not: where stored blocks are kept.

    An 8-bit LM head is left to the build, unless its input needs a static scale: RTN is as good for it.
    """
    precision, quantizer = (
        Precision(checkpoint, target),
        Quantizer(checkpoint, dequantize_linear=target.dequantizes),
    )
    shapes = expected_tensors(checkpoint.config)

    def format_of(name: str) -> WeightFormat | None:
        weight_format = precision.format_of(name)
        if weight_format is None or (name in LM_HEAD_TABLES and target.input_type is None and weight_format.bits == 8):
            return None
        rows, columns = shapes[name]
        keeps_blocks = quantizer.plan((name,), rows, columns, weight_format).keeps_blocks
        return None if keeps_blocks else quantizer.fitted(weight_format, columns)

    return format_of


def quantizes_anything(checkpoint: Checkpoint, target: Target) -> bool:
    """Whether there is anything to calibrate: stored 4-bit blocks are kept as they are."""
    format_of = quantized_format_of(checkpoint, target)
    return any(
        format_of(name) is not None for name, shape in expected_tensors(checkpoint.config).items() if len(shape) == 2
    )


def _digest(
    checkpoint: Checkpoint,
    fingerprint: str,
    recipe: Recipe,
    algorithm: str,
    tokens: NDArray[np.int64],
    samples: int,
    simulate: bool,
) -> str:
    """A hash of everything that the result depends on, which names the request's folder."""
    shapes = expected_tensors(checkpoint.config)
    weight_formats = {name: str(recipe.weight_format(name)) for name, shape in shapes.items() if len(shape) == 2}
    request = {
        "version": version("megrez-compile"),
        "model": fingerprint,
        "algorithm": algorithm,
        "inputs": recipe.input_type,
        "forms": weight_formats,
        "tokens": hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(),
        "learn": samples,
        "simulate": simulate,
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
