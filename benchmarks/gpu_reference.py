"""A float16 bundle of a cuda-* target in float32: the same codes, scales and graph, for CPU kernels.

python benchmarks/gpu_reference.py BUNDLE OUTPUT
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from onnx_ir import DataType

from megrez.engines.onnx_files import write_onnx
from megrez.engines.ort import MODEL_FILE
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.manifest import FILE_NAME


def widen(bundle: Bundle, output: Path) -> Bundle:
    """Write the bundle `output`, with float32 instead of the float16 of `bundle`."""
    model = ir.load(bundle.path / MODEL_FILE)
    graph = model.graph
    for value in [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]:
        if value.dtype != DataType.FLOAT16:
            continue
        value.type = ir.TensorType(DataType.FLOAT)
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    output.mkdir()
    write_onnx(model, output)
    half = bundle.manifest.kv_cache
    cache = replace(half, dtype="float32", bytes_per_token=2 * half.bytes_per_token)
    manifest = replace(bundle.manifest, kv_cache=cache, files=())
    (output / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(path=output, manifest=manifest)


@click.command()
@click.argument("bundle")
@click.argument("output", type=click.Path(path_type=Path))
def main(bundle: str, output: Path) -> None:
    widen(open_bundle(bundle), output)


if __name__ == "__main__":
    main()
