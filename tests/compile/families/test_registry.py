"""Every family's description beside what transformers and gguf say of it."""

import dataclasses

import gguf
import pytest
import transformers
from optimum.exporters.tasks import TasksManager
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megrez.compile.families.config import DEFAULTS
from megrez.compile.families.family import Family
from megrez.compile.families.registry import by_architecture, by_gguf_architecture, by_model_type, families
from megrez.compile.graph.export.optimum_config import TASK, LlamaExporterConfig

every_family = pytest.mark.parametrize("family", families(), ids=lambda family: str(family.model_type))


def test_no_two_families_share_a_name() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(by_model_type())
    assert len(by_architecture()) == len(by_model_type()) == len(families())
    assert len(by_gguf_architecture()) == sum(family.gguf is not None for family in families())


@every_family
def test_the_architecture_is_the_one_that_transformers_gives_the_model_type(family: Family) -> None:
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type] == family.architecture


@every_family
def test_a_missing_field_means_what_it_means_in_transformers(family: Family) -> None:
    theirs = type(transformers.AutoConfig.for_model(family.model_type))
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
    ours = {**DEFAULTS, **family.defaults}
    assert ours == {name: defaults[name] for name in ours}


@every_family
def test_a_field_that_switches_biases_on_is_one_of_transformers_config(family: Family) -> None:
    fields = {field.name for field in dataclasses.fields(transformers.AutoConfig.for_model(family.model_type))}
    switches = (family.qkv_bias, family.output_bias, family.mlp_bias)
    assert {switch for switch in switches if isinstance(switch, str)} <= fields


@every_family
def test_optimum_knows_it(family: Family) -> None:
    found = TasksManager.get_exporter_config_constructor(exporter="megrez", model_type=family.model_type, task=TASK)
    assert getattr(found, "func", found) is LlamaExporterConfig


def test_gguf_architectures_are_those_of_the_gguf_package() -> None:
    assert set(by_gguf_architecture()) <= set(gguf.MODEL_ARCH_NAMES.values())
