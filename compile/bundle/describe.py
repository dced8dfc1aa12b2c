"""The manifest of a bundle: its content and provenance; knows no file."""

from dataclasses import dataclass

from megrez.calibration.results.record import Record
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.rotated import RotatedCheckpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.checkpoint.text_assets import GREEDY
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.compile.machine import package_version
from megrez.engines.targets import Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.manifest import (
    SCHEMA_VERSION,
    Architecture,
    KvCache,
    Manifest,
    Measured,
    Provenance,
    Quantization,
    Tokens,
)

TOOLS = ("gguf", "megrez-compile", "numpy", "onnx", "onnx-ir", "onnxruntime", "optimum", "torch", "transformers")
ENGINE_TOOLS = {"tensorrt": ("tensorrt-cu13", "tensorrt-rtx-cu13"), "qnn": ("onnxruntime-qnn",)}
BYTES = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}
# Of an int8 cache, per token and KV head.
CACHE_SCALE = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the manifest describes. weights: "checkpoint" or "dummy"; record: the calibration, None without one."""

    checkpoint: Checkpoint
    target: Target
    context: int
    weights: str
    record: Record | None


def kv_cache(config: ModelConfig, target: Target) -> KvCache:
    """The data type of a model's KV cache under a target, and the bytes that a token takes in all layers."""
    is_scaled = target.kv_dtype == "int8"
    per_head = config.head_dim * BYTES[target.kv_dtype] + (BYTES[CACHE_SCALE] if is_scaled else 0)
    return KvCache(
        dtype=target.kv_dtype,
        bytes_per_token=config.num_hidden_layers * 2 * config.num_key_value_heads * per_head,
        scales=f"{CACHE_SCALE} per token and head" if is_scaled else None,
        keys="Hadamard-transformed per head" if is_scaled else None,
    )


def describe(content: Content) -> Manifest:
    """The manifest of a bundle whose files are not written yet.

    Its fidelity is that of the calibration where no CPU can run the engine or its graph.
    """
    checkpoint, target = content.checkpoint, content.target
    config, text = checkpoint.config, checkpoint.text
    return Manifest(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        engine=target.engine,
        context_length=content.context,
        architecture=_architecture(config),
        kv_cache=kv_cache(config, target),
        tokens=text.tokens if text is not None else Tokens(bos=None, pad=None, stop=(), add_bos=False),
        sampling=text.sampling if text is not None else GREEDY,
        provenance=Provenance(
            source=checkpoint.source,
            weights=content.weights,
            quantization=_quantization(content),
            calibration=None if content.record is None else content.record.text,
            tools=tool_versions(target.engine),
        ),
        measured=None if target.fidelity_engine is not None else _simulated(content),
        device=None,
        files=(),
    )


def _simulated(content: Content) -> Measured | None:
    record = content.record
    if record is None or record.fidelity is None:
        return None
    return Measured(of="simulation", text=record.text.source, fidelity=record.fidelity)


def _quantization(content: Content) -> Quantization | None:
    target, checkpoint = content.target, content.checkpoint
    if target.weights is None:
        return None
    return Quantization(
        algorithm="rtn" if content.record is None else content.record.algorithm,
        projections=str(target.weights),
        sensitive=_spelled(target.sensitive),
        inputs=target.input_type,
        activations=target.activations if target.quantizes_all_activations else None,
        embedding="uint16" if target.quantizes_all_activations else _spelled(target.embedding),
        lm_head=_spelled(target.head),
        keeps_blocks=target.input_type is None
        and not target.quantizes_all_activations
        and _keeps_blocks(checkpoint, target),
        rotated=isinstance(checkpoint, RotatedCheckpoint),
    )


def _keeps_blocks(checkpoint: Checkpoint, target: Target) -> bool:
    precision, quantizer = (
        Precision(checkpoint, target),
        Quantizer(checkpoint, dequantize_linear=target.dequantizes),
    )
    for name, shape in expected_tensors(checkpoint.config).items():
        weight_format = precision.format_of(name) if len(shape) == 2 else None
        if weight_format is not None and quantizer.plan((name,), shape[0], shape[1], weight_format).keeps_blocks:
            return True
    return False


def _spelled(weight_format: WeightFormat | None) -> str | None:
    return None if weight_format is None else str(weight_format)


def _architecture(config: ModelConfig) -> Architecture:
    return Architecture(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
    )


def tool_versions(engine: str) -> dict[str, str]:
    """The installed versions of the tools that build bundles of `engine`."""
    tools = (*TOOLS, *ENGINE_TOOLS.get(engine, ()))
    return {tool: version for tool in tools if (version := package_version(tool)) is not None}
