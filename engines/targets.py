"""The table of targets: what `--target NAME` means, one row each; knows no checkpoint and no graph."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace

from megrez.engines.devices import CAPABILITIES, devices_of, spell
from megrez.engines.weight_formats import (
    BLOCKS,
    FP8_CHANNELS,
    INT4,
    INT4_BLOCKS,
    INT4_COARSE,
    INT8,
    INT8_CHANNELS,
    INT8_COARSE,
    LPBQ,
    NVFP4_BLOCKS,
    WeightFormat,
)
from megrez.runtime.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One way to compile a model. A weight format of None is not quantised: data type `float_dtype`.

    weights: of the projections. sensitive: of those that quantisation affects most, see megrez.compile.graph.precision.
    head: of the lm_head. embedding: of the embedding table, and of the most common tokens' rows of a coarser head.
    input_type: "int8", "fp8" or "fp4" if the inputs of projections are quantised too, with one calibrated scale per
    tensor. algorithm: the default calibration algorithm, see megrez.compile.calibrate.stage; "rtn" rounds to nearest.
    kv_dtype: of the KV cache. plain_dtype: of what is not quantised, None where it is kv_dtype; see `float_dtype`.
    higher_precision: the tensors with format `sensitive`; None: as megrez.compile.graph.precision chooses.
    rotated: whether the residual stream is rotated first, see megrez.compile.checkpoint.rotated.
    min_capability: the lowest NVIDIA compute capability with the needed data types; None for other devices.
    default_context: the context length in tokens without --context.
    """

    name: str
    engine: str
    dialect: str
    weights: WeightFormat | None
    sensitive: WeightFormat | None
    head: WeightFormat | None
    embedding: WeightFormat | None
    activations: str
    kv_dtype: str
    devices: str
    plain_dtype: str | None = None
    input_type: str | None = None
    algorithm: str = "rtn"
    higher_precision: frozenset[str] | None = None
    rotated: bool = False
    min_capability: int | None = None
    default_context: int = 4096

    @property
    def float_dtype(self) -> str:
        """The data type of what is not quantised."""
        return self.plain_dtype or self.kv_dtype

    @property
    def dequantizes(self) -> bool:
        """Whether its weights are stored for DequantizeLinear: no partial blocks, symmetric, with positive scales."""
        return self.dialect in ("portable", "qnn")

    @property
    def quantizes_all_activations(self) -> bool:
        """Whether every value of its graph is quantised, with ranges observed on calibration data."""
        return self.dialect == "qnn"

    @property
    def half(self) -> bool:
        """Whether the graph itself is float16; TensorRT's is converted when its engine is built."""
        return self.engine == "ort-cuda"

    @property
    def fidelity_engine(self) -> str | None:
        """The engine that measures a bundle's fidelity on a CPU; None if calibration has to simulate it.

        "ort" runs "ort-cuda" graphs, with float16 CPU kernels. No CPU runs NVFP4, whose operators are TensorRT's own,
        nor engines that are built for a device.
        """
        if self.engine in STAGED or self.input_type == "fp4":
            return None
        return "ort" if self.half else self.engine

    @property
    def runs_here(self) -> bool:
        """Whether any CPU runs the bundle."""
        return self.fidelity_engine == self.engine

    def staged(self) -> "Target":
        """This target without its engine: the calibrated graph, which any CPU can run as a reference."""
        if self.engine not in STAGED:
            raise UsageError(f"--stage onnx stops before an engine is built, {self.name} builds none: leave it out")
        reference = STAGED[self.engine]
        return replace(self, engine=reference, kv_dtype="float32" if reference == "portable" else self.kv_dtype)

    def check_capabilities(self, capabilities: Collection[int]) -> None:
        """Raise UsageError for devices without the data types that this target needs, and list those with them."""
        least = self.min_capability
        if least is None:
            raise UsageError(f"--arch names NVIDIA devices, {self.name} is for {self.devices}: leave it out")
        if self.half:
            raise UsageError(
                f"--arch is for engines that are built for a device, a {self.name} bundle runs on all {self.devices}: "
                "leave it out"
            )
        if lacking := sorted(capability for capability in capabilities if capability < least):
            able = sorted({capability for capability in CAPABILITIES.values() if capability >= least})
            raise UsageError(
                f"{self.name} needs sm_{least} or later, not {devices_of(lacking)} ({spell(lacking)}): choose "
                f"another target, or among {devices_of(able)}"
            )

    @property
    def higher_precision_format(self) -> WeightFormat | None:
        """The format in which --max-kl may keep a projection: 8 bits for 4; not quantised (None) for 8 or E2M1."""
        if self.weights is None or self.weights.bits == 8 or self.weights.floating:
            return None
        return INT8_CHANNELS if self.dequantizes else INT8

    def with_higher_precision(self, names: frozenset[str]) -> "Target":
        """This target with only the projections `names` in higher precision; the head gets the embedding's format."""
        return replace(
            self, sensitive=self.higher_precision_format, higher_precision=names, head=self.embedding or self.head
        )

    def with_head(self) -> "Target":
        """This target with a quantised lm_head: in its projections' format, or int8 for int4."""
        if self.head is not None or self.weights is None:
            raise UsageError(
                f"--quantize-head is for targets with an unquantised LM head, {self.name} has none: leave it out"
            )
        return replace(self, head=self.weights if self.weights.bits == 8 or self.weights.floating else INT8_CHANNELS)

    def with_kv(self, kv: str) -> "Target":
        """This target with a KV cache in `kv`, one of KV_DTYPES; raises UsageError where its engine has one only."""
        if self.engine != "ort":
            raise UsageError(f"--kv is for cpu-* targets, the KV cache of {self.name} is {self.kv_dtype}: leave it out")
        return replace(self, kv_dtype=KV_DTYPES[kv], plain_dtype=self.float_dtype)

    def with_block(self, block: int | None) -> "Target":
        """This target with another block size: larger blocks are smaller and faster, but less faithful.

        None: one scale per output channel, which for 4 bits only NPUs support.
        """
        if self.weights is None:
            raise UsageError(
                f"--block-size is for quantised weights, {self.name} keeps {self.float_dtype}: leave it out"
            )
        if self.weights.block is None or self.weights.floating:
            raise UsageError(
                f"--block-size is for targets with a choice of blocks, {self.name} has {self.weights}: leave it out"
            )

        if block is None and self.dialect != "qnn":
            raise UsageError(f"--block-size {CHANNEL} is for NPUs only: choose a number for {self.name}")

        def resized(form: WeightFormat | None) -> WeightFormat | None:
            nested = form is not None and form.nested and block is not None
            return form if form is None or form.block is None else replace(form, block=block, nested=nested)

        weights, sensitive, head, embedding = map(resized, (self.weights, self.sensitive, self.head, self.embedding))
        return replace(self, weights=weights, sensitive=sensitive, head=head, embedding=embedding)


# The values of --kv and the data types that they name.
KV_DTYPES = {"f32": "float32", "f16": "float16", "int8": "int8"}
# Engines that are built from a graph → the engine that runs the graph itself.
STAGED = {"tensorrt": "portable", "qnn": "qdq"}
CHANNEL = "channel"
# The value of --arch for this machine's GPU.
NATIVE = "native"
BLOCK_SIZES = tuple(map(str, BLOCKS))
CUDA = Target(
    name="cuda-fp16",
    engine="ort-cuda",
    dialect="ort",
    weights=None,
    sensitive=None,
    head=None,
    embedding=None,
    activations="float16",
    kv_dtype="float16",
    devices="NVIDIA GPUs of SM75 and later, through ONNX Runtime",
    min_capability=75,
)

TENSORRT = Target(
    name="trt-fp16",
    engine="tensorrt",
    dialect="portable",
    weights=None,
    sensitive=None,
    head=None,
    embedding=None,
    activations="float16",
    kv_dtype="float16",
    devices="NVIDIA GPUs of SM75 and later",
    min_capability=75,
)

QNN = Target(
    name="qnn-w8a16",
    engine="qnn",
    dialect="qnn",
    weights=INT8_CHANNELS,
    sensitive=INT8_CHANNELS,
    head=INT8_CHANNELS,
    embedding=None,
    activations="uint16 per tensor, calibrated",
    kv_dtype="uint8",
    devices="Snapdragon NPUs of v73 and later",
    default_context=1024,
)

CPU = Target(
    name="cpu-fp32",
    engine="ort",
    dialect="ort",
    weights=None,
    sensitive=None,
    head=None,
    embedding=None,
    activations="float32",
    kv_dtype="float32",
    devices="any CPU",
)
CPU_INT8 = replace(
    CPU,
    name="cpu-int8",
    weights=INT8,
    sensitive=INT8,
    head=INT8,
    embedding=INT8,
    activations="int8 per block, at run time",
)
CPU_INT4 = replace(
    CPU_INT8,
    name="cpu-int4",
    weights=INT4_COARSE,
    sensitive=INT8_COARSE,
    head=INT4_COARSE,
    embedding=INT8_COARSE,
    algorithm="gptq",
    rotated=True,
)

TARGETS = (
    CPU,
    CPU_INT8,
    CPU_INT4,
    replace(CPU_INT4.with_block(32), name="cpu-int4-b32"),  # more faithful, and larger
    CUDA,
    replace(CUDA, name="cuda-int8", weights=INT8, sensitive=INT8, head=INT8, embedding=INT8),
    replace(
        CUDA,
        name="cuda-int4",
        weights=INT4,
        sensitive=INT8_COARSE,
        head=INT4,
        embedding=INT8_COARSE,
        algorithm="gptq",
        rotated=True,
    ),
    TENSORRT,
    replace(
        TENSORRT,
        name="trt-int8",
        weights=INT8_CHANNELS,
        sensitive=INT8_CHANNELS,
        activations="int8 per tensor, calibrated",
        input_type="int8",
        algorithm="smoothquant",
    ),
    replace(
        TENSORRT,
        name="trt-fp8",
        weights=FP8_CHANNELS,
        sensitive=FP8_CHANNELS,
        activations="fp8 per tensor, calibrated",
        devices="NVIDIA GPUs of SM89 and later",
        input_type="fp8",
        algorithm="gptq",
        min_capability=89,
    ),
    replace(
        TENSORRT,
        name="trt-int4",
        weights=INT4_BLOCKS,
        sensitive=INT4_BLOCKS,
        devices="NVIDIA GPUs of SM80 and later",
        algorithm="gptq",
        min_capability=80,
    ),
    replace(
        TENSORRT,
        name="trt-nvfp4",
        weights=NVFP4_BLOCKS,
        sensitive=NVFP4_BLOCKS,
        activations="fp4 in blocks of 16, at run time",
        devices="NVIDIA GPUs of SM100 and later",
        input_type="fp4",
        algorithm="gptq",
        min_capability=100,
    ),
    QNN,
    replace(QNN, name="qnn-w4a16", weights=LPBQ, sensitive=LPBQ, algorithm="gptq"),
)


def find_target(name: str) -> Target:
    """The target called `name`; raises UsageError with the most similar name if there is none."""
    names = [target.name for target in TARGETS]
    if name in names:
        return TARGETS[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown target {name!r}: {hint}the targets are {', '.join(names)}")
