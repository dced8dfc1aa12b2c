"""This machine's GPU as one line of JSON, or a one-line error: python benchmarks/gpu_device.py EXTRA.

EXTRA: rtx or cuda, whose libraries must be installed.
"""

import importlib.metadata
import json

import click

from megrez.engines.cuda_runtime import Cuda

PACKAGES = {"rtx": "tensorrt-rtx-cu13", "cuda": "onnxruntime-gpu"}


@click.command()
@click.argument("extra", type=click.Choice(tuple(PACKAGES)))
def main(extra: str) -> None:
    cuda = Cuda(extra)
    properties = cuda("cudaGetDeviceProperties", 0)
    found = {
        "name": properties.name.decode().rstrip("\0"),
        "capability": f"sm_{cuda.capability()}",
        "free_bytes": cuda.free_bytes(),
        "library": f"{PACKAGES[extra]} {importlib.metadata.version(PACKAGES[extra])}",
    }
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
