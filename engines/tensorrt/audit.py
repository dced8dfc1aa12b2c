"""Audit of a built engine: do its kernels do what the ONNX graph specifies? Compares records; loads no library."""

import re
from collections import Counter
from collections.abc import Iterable

from megrez.engines.tensorrt.graph import GraphSpec
from megrez.engines.tensorrt.kernels import Kernel, Tensor
from megrez.runtime.fusion import Fusion, Phase

# TensorRT's names of data types, and ours.
NAMES = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
    "FP8": "fp8",
    "Int8": "int8",
    "Int4": "int4",
    "FP4E2M1": "fp4",
}
BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}
PRODUCTS = ("gemm", "runtime_fusion")
ATTENTION = re.compile(r"_?[a-z]+_mha_v\d+")
CACHE = re.compile(r"(?:past_key_values|present)\.(\d+\.\w+)")
DECODE, PREFILL = 0, 1
DROPPED = "unused input"


def audit(spec: GraphSpec, kernels: list[Kernel], log: Iterable[str]) -> tuple[Fusion, list[str]]:
    """The fusion report of both profiles, and every fault with the name of its layer.

    Faults: inputs that the parser dropped, projections computed in another data type than specified, attention split
    over several kernels or without its mask, and KV caches that a decode step copies. Prefill may expand the cache to
    all query heads once per chunk; this is counted, and is no fault.
    """
    faults = [f"the parser dropped an input: {line.strip()}" for line in log if DROPPED in line.lower()]
    phases = []
    for profile, name in ((DECODE, "decode"), (PREFILL, "prefill")):
        phase, found = _audit_phase(spec, [kernel for kernel in kernels if kernel.profile == profile], name)
        phases.append(phase)
        faults += found
    return Fusion(decode=phases[DECODE], prefill=phases[PREFILL]), faults


def _audit_phase(spec: GraphSpec, kernels: list[Kernel], name: str) -> tuple[Phase, list[str]]:
    faults: dict[str, str] = {}
    types: Counter[str] = Counter()
    for projection, wanted in spec.projections.items():
        found = _product_type(projection, kernels)
        types[found] += 1
        if found != wanted:
            faults[projection] = f"should multiply in {wanted} but multiplies in {found}"
    attentions: Counter[str] = Counter()
    for attention in spec.attentions:
        fused = [kernel for kernel in kernels if attention in kernel.nodes and ATTENTION.match(kernel.tactic)]
        attentions.update(_short(kernel) for kernel in fused)
        if len(fused) != 1:
            faults[attention] = f"should be one fused kernel but is {len(fused)}"
        elif not any(_is_mask(tensor, spec.capacity) for tensor in fused[0].inputs):
            faults[attention] = f"has no mask in {_short(fused[0])}"
    phase = Phase(
        attention_kernels=dict(attentions),
        cache_copies=sum(_copied(kernel) is not None for kernel in kernels),
        gemm_types=dict(types),
        unfused=tuple(faults),
    )
    messages = [f"{layer} {fault} in {name}" for layer, fault in faults.items()]
    copies = {cache: kernel for kernel in kernels if (cache := _copied(kernel)) is not None}
    messages += [
        f"{cache} is copied by {kernel.name} in {name}"
        for cache, kernel in copies.items()
        if name == "decode" or cache.startswith("past")
    ]
    return phase, messages


def gemm_type(inputs: str, weights: str) -> str:
    """Name of a GEMM's data types: "fp8" where both operands are, "int4" for weight-only, else "fp8*fp16"."""
    return weights if weights in (inputs, "int4") else f"{weights}*{inputs}"


def _product_type(projection: str, kernels: list[Kernel]) -> str:
    """Data type of the GEMM kernels of `projection`; joined with "+" where they differ."""
    products = [kernel for kernel in kernels if projection in kernel.nodes and kernel.kind in PRODUCTS]
    types = {gemm_type(_narrowest(kernel.inputs), _narrowest(kernel.constants)) for kernel in products}
    return "+".join(sorted(types)) or "nothing"


def _narrowest(tensors: Iterable[Tensor]) -> str:
    """The narrowest data type: scales and residuals beside the operands are wider."""
    names = [NAMES[tensor.dtype] for tensor in tensors if tensor.dtype in NAMES]
    return min(names, key=BITS.__getitem__, default="nothing")


def _is_mask(tensor: Tensor, capacity: int) -> bool:
    """[B, 1, T, capacity]."""
    return len(tensor.dims) == 4 and tensor.dims[1] == 1 and tensor.dims[2] != capacity and tensor.dims[3] == capacity


def _copied(kernel: Kernel) -> str | None:
    """The KV cache that `kernel` copies elsewhere, or None. Attention only reads caches; an update writes in place."""
    if ATTENTION.match(kernel.tactic):
        return None
    written = {tensor.name for tensor in kernel.outputs}
    read = [tensor.name for tensor in kernel.inputs if CACHE.fullmatch(tensor.name)]
    return next((name for name in read if name not in written), None)


def _short(kernel: Kernel) -> str:
    found = ATTENTION.match(kernel.tactic)
    assert found is not None
    return found[0]
