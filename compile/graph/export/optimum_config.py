"""The export configuration for optimum: a normalised config, dummy inputs, and named dynamic axes.

Registered with optimum's TasksManager under the backend "megrez", for every family. Knows names and shapes, no weights.
"""

from typing import Any

from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import DummyInputGenerator, DummyPastKeyValuesGenerator, DummyTextInputGenerator
from optimum.utils.normalized_config import NormalizedTextConfigWithGQA

from megrez.compile.families.registry import families

TASK = "text-generation"


class LlamaNormalizedConfig(NormalizedTextConfigWithGQA):  # type: ignore[misc]
    HEAD_DIM = "head_dim"


class DummyCacheGenerator(DummyPastKeyValuesGenerator):  # type: ignore[misc]
    """Key and value per layer, [batch, num_key_value_heads, capacity, head_dim]."""

    CAPACITY = 7

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> list[tuple[Any, Any]]:
        shape = (self.batch_size, self.kv_heads, self.CAPACITY, self.head_dim)
        pair = [self.random_float_tensor(shape, framework=framework, dtype=float_dtype) for _ in range(2)]
        return [(pair[0].clone(), pair[1].clone()) for _ in range(self.num_layers)]

    def __init__(self, task: str, normalized_config: LlamaNormalizedConfig, batch_size: int = 2, **others: Any) -> None:
        super().__init__(task, normalized_config, batch_size=batch_size)
        self.kv_heads, self.head_dim = normalized_config.num_key_value_heads, normalized_config.head_dim


class DummyIndexGenerator(DummyInputGenerator):  # type: ignore[misc]
    """write_indices, where new tokens go in the cache, and logits_index, which positions' logits are returned."""

    SUPPORTED_INPUT_NAMES = ("write_indices", "logits_index")

    def __init__(self, task: str, normalized_config: LlamaNormalizedConfig, batch_size: int = 2, **others: Any) -> None:
        self.sizes = {"write_indices": batch_size, "logits_index": batch_size + 3}

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        return self.constant_tensor([self.sizes[input_name]], value=0, framework=framework)


class LlamaExporterConfig(ExporterConfig):  # type: ignore[misc]
    """One configuration for every Llama-GQA model: all are traced from the same module."""

    NORMALIZED_CONFIG_CLASS = LlamaNormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTextInputGenerator, DummyIndexGenerator, DummyCacheGenerator)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "input_ids": {0: "batch", 1: "sequence"},
            "write_indices": {0: "batch"},
            "logits_index": {0: "num_logits"},
            "past_key_values": {0: "batch", 2: "capacity"},
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"logits": {0: "num_logits"}, "present": {0: "batch", 2: "capacity"}}


for _family in families():
    TasksManager.create_register("megrez")(_family.model_type, TASK)(LlamaExporterConfig)
