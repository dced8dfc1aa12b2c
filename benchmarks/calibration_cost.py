"""Cost of calibrating a checkpoint: seconds per layer and peak memory, on random tokens, as costly as text.

python benchmarks/megrez_checkpoint.py FOLDER
python benchmarks/calibration_cost.py FOLDER --target trt-int8 --layers 3

With --layers only the first layers are calibrated, and then the LM head; the output states their number.
"""

import dataclasses
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from megrez.calibration.layerwise import calibrate_layers
from megrez.calibration.recipe import Recipe
from megrez.calibration.results.store import Store
from megrez.compile.calibrate.held_out import model_of
from megrez.compile.calibrate.stage import ALGORITHMS, quantized_format_of
from megrez.compile.checkpoint import open_checkpoint
from megrez.engines.targets import find_target


@click.command()
@click.argument("model")
@click.option("--target", required=True, help="Calibrate for this target.")
@click.option("--samples", default=8, show_default=True)
@click.option("--tokens", default=256, show_default=True)
@click.option("--layers", type=int, help="Calibrate only the first layers [all].")
@click.option("--work", type=click.Path(path_type=Path), help="A folder for the finished layers [a temporary one].")
def main(model: str, target: str, samples: int, tokens: int, layers: int | None, work: Path | None) -> None:
    """Print seconds per layer and the peak of resident memory as JSON."""
    checkpoint, row = open_checkpoint(model), find_target(target)
    smoothing, gptq = ALGORITHMS[row.algorithm]
    recipe = Recipe(
        smoothing=smoothing, gptq=gptq, input_type=row.input_type, weight_format=quantized_format_of(checkpoint, row)
    )
    full = model_of(checkpoint, tokens)
    shortened = dataclasses.replace(full, windows=full.windows[:layers])
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (samples, tokens))
    marks = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        calibrate_layers(
            shortened,
            ids,
            samples,
            recipe,
            Store(Path(folder) / "state"),
            lambda done: marks.append(time.perf_counter()),
        )
    seconds = [round(after - before, 2) for before, after in itertools.pairwise(marks)]
    answer = {
        "target": target,
        "algorithm": row.algorithm,
        "samples": samples,
        "tokens": tokens,
        "layers_walked": len(shortened.windows),
        "layers_of_the_model": len(full.windows),
        "seconds_per_layer": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    click.echo(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
