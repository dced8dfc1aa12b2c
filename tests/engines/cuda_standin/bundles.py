"""Bundles for the stand-ins: a manifest, and a plan that only tests.engines.cuda_standin.engine reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorrt_rtx

from megrez.engines.tensorrt import PLAN_FILE
from megrez.engines.tensorrt.session import PlanShape, plan_shape
from megrez.runtime.bundle import Bundle
from megrez.runtime.manifest import Device
from tests.engines.cuda_standin.engine import PLAN
from tests.runtime.conftest import plain_manifest

MEMORY = 10 << 20


def make_bundle(folder: Path, library: str, **changes: Any) -> Bundle:
    """With a plan; `changes` are of the manifest's device."""
    folder.mkdir(exist_ok=True)
    (folder / PLAN_FILE).write_bytes(PLAN)
    device = Device(
        library=library,
        version=tensorrt_rtx.__version__,
        capabilities=("sm_89", "sm_120"),
        slots=3,
        chunk=4,
        max_logits=3,
        memory_bytes=MEMORY,
        version_compatible=False,
    )
    plain = plain_manifest()
    architecture = replace(plain.architecture, num_key_value_heads=2)
    changed = {"engine": "tensorrt", "architecture": architecture, "device": replace(device, **changes)}
    manifest = replace(plain, **changed)
    return Bundle(path=folder, manifest=manifest)


def shape_of(bundle: Bundle) -> PlanShape:
    return plan_shape(bundle.manifest)
