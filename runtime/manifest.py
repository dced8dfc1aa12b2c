"""The contract between the compiler and the runtime: `manifest.json` of a bundle.

Independent of engines and checkpoints.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass

from megrez.runtime.errors import BundleError
from megrez.runtime.records import parse

SCHEMA_VERSION = 5
# Fields that were added since have defaults.
OLDEST_VERSION = 4
FILE_NAME = "manifest.json"
CACHE_DTYPES = ("float32", "float16", "uint8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The decoder's shape, in the field names of Hugging Face configs."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer."""
        heads = self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.hidden_size * (heads + 3 * self.intermediate_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Over `tokens` positions: perplexities, KL(reference || model) in nats, and how often both argmax agree."""

    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFidelity:
    """The fidelity to the same graph and weights with a float32 KV cache, on `text` in windows of `context` tokens."""

    context: int
    text: str
    fidelity: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """One key and one value cache per layer, each [slots, num_key_value_heads, context_length, head_dim].

    bytes_per_token: of all layers, scales included. scales: data type and granularity; None without scales, and for
    NPUs, where they are constants of the graph. keys: how they are transformed before they are stored, None if they are
    not. fidelity: what this format costs, at several context lengths; empty if it was not measured.
    """

    dtype: str
    bytes_per_token: int
    scales: str | None = None
    keys: str | None = None
    fidelity: tuple[CacheFidelity, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Special token ids. Generation ends at any of `stop`; add_bos: whether plain text gets a leading `bos`."""

    bos: int | None
    pad: int | None
    stop: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class Bound:
    """rule: the condition `holds` in words, as messages state it."""

    rule: str
    holds: Callable[[float], bool]


SAMPLING_BOUNDS = {
    "temperature": Bound("of 0 or more", lambda value: 0 <= value < math.inf),
    "top_k": Bound("of 0 (off) or more", lambda value: value >= 0),
    "top_p": Bound("above 0 and up to 1 (off)", lambda value: 0 < value <= 1),
    "min_p": Bound("from 0 (off) to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": Bound("from 0.01 to 100", lambda value: 0.01 <= value <= 100),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """The sampling parameters that the model's authors recommend; temperature 0 is greedy."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def faults(self) -> list[str]:
        """Values out of range, as short phrases; empty if there are none."""
        given = ((name, getattr(self, name)) for name in SAMPLING_BOUNDS)
        return [f"{name} is {value}" for name, value in given if not SAMPLING_BOUNDS[name].holds(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the bundle: its path inside it, size in bytes and SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The calibration data: `samples` windows of `tokens` tokens of the text `source`.

    sha256: of the token ids. seed: of the windows' positions, None if the text was read from its start.
    """

    source: str
    sha256: str
    samples: int
    tokens: int
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the weights are stored. A format of None is not quantised: it has the data type of the engine.

    algorithm: "rtn", "gptq", "awq+gptq", … projections, sensitive: the decoder layers' matrices, and those of them that
    quantisation affects most. inputs: of the projections, with one static scale per tensor. activations: of the whole
    graph, if all of them are quantised. keeps_blocks: the checkpoint's own quantised blocks are stored unchanged.
    rotated: the residual stream was rotated first (QuaRot, Ashkboos et al., 2024).
    """

    algorithm: str
    projections: str
    sensitive: str | None
    inputs: str | None
    activations: str | None
    embedding: str | None
    lm_head: str | None
    keeps_blocks: bool
    rotated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the bundle came from. `weights`: "checkpoint", or "dummy" for seeded random ones.

    quantization: None for weights that are not quantised. calibration: None if no calibration data was used.
    """

    source: str
    weights: str
    quantization: Quantization | None
    calibration: Calibration | None
    tools: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The fidelity to the checkpoint in float32, on a part of `text` that is not calibration data.

    of: "bundle" if its own engine ran it, or "simulation" if a CPU simulated the quantised model because the engine
    needs a device.
    """

    of: str
    text: str
    fidelity: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device and the limits of an engine that is built ahead of time; other engines have none.

    library, version: built the engine and must run it, such as "tensorrt_rtx" "1.7.1.116". capabilities: "sm_89", or
    "sm_80+" for it and all later ones, …
    slots: most sequences of a step. chunk: most tokens per sequence of a step. max_logits: most tokens whose logits a
    step returns. memory_bytes: device memory for weights and intermediate results, without the KV cache.
    version_compatible: later versions of the library run it too.
    """

    library: str
    version: str
    capabilities: tuple[str, ...]
    slots: int
    chunk: int
    max_logits: int
    memory_bytes: int
    version_compatible: bool

    def takes(self, capability: int) -> bool:
        """Whether the engine runs on a GPU of this capability: 89 is sm_89."""
        named = f"sm_{capability}"
        later = (one.removeprefix("sm_").removesuffix("+") for one in self.capabilities if one.endswith("+"))
        return named in self.capabilities or any(one.isdecimal() and capability >= int(one) for one in later)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that the runtime needs to know about a bundle before it opens the engine's files."""

    schema_version: int
    target: str
    engine: str
    context_length: int
    architecture: Architecture
    kv_cache: KvCache
    tokens: Tokens
    sampling: SamplingDefaults
    provenance: Provenance
    measured: Measured | None
    device: Device | None
    files: tuple[File, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse and check `text`; raises BundleError, which names every fault."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{FILE_NAME} is not JSON ({error}): compile the bundle again") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                f"the bundle has schema version {version}, this runtime reads up to {SCHEMA_VERSION}: "
                "upgrade with  pip install -U megrez-compile"
            )
        if isinstance(version, int) and version < OLDEST_VERSION:
            raise BundleError(
                f"the bundle has schema version {version}, this runtime reads {OLDEST_VERSION} to {SCHEMA_VERSION}: "
                "compile it again"
            )
        faults: list[str] = []
        manifest = parse(cls, data, faults)
        if not faults:
            faults = manifest.faults()
        if faults:
            raise BundleError(f"{FILE_NAME} is not valid: {'; '.join(faults)}: compile the bundle again")
        return typing.cast(Manifest, manifest)

    def faults(self) -> list[str]:
        """Inconsistencies between the fields, as short sentences; empty if there are none."""
        a = self.architecture
        counts = {f.name: getattr(a, f.name) for f in dataclasses.fields(a) if f.type is int}
        counts["context_length"] = self.context_length
        found = [f"{name} is {value}" for name, value in counts.items() if value < 1]
        if a.num_key_value_heads > 0 and a.num_attention_heads % a.num_key_value_heads:
            found.append(f"{a.num_attention_heads} heads do not share {a.num_key_value_heads} KV heads evenly")
        tokens, cache = self.tokens, self.kv_cache.dtype
        ids = (*tokens.stop, *([tokens.bos] if tokens.add_bos and tokens.bos is not None else []))
        found += [f"token id {i} is outside the vocabulary" for i in ids if not 0 <= i < a.vocab_size]
        found += [] if cache in CACHE_DTYPES else [f"the KV cache's dtype is {cache!r}"]
        found += [f"recommended {fault}" for fault in self.sampling.faults()]
        found += [f"file path {f.path!r} leaves the bundle" for f in self.files if not _stays_inside(f.path)]
        return found


def stated_files(text: str) -> set[str] | None:
    """The paths that a manifest of any schema version lists; None if `text` is not a manifest."""
    try:
        data = json.loads(text)
        if not isinstance(data["schema_version"], int):
            return None
        return {file["path"] for file in data["files"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _stays_inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and "\\" not in path and ".." not in path.split("/")
