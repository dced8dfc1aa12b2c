"""The supported families: every module of this package with a `FAMILY`; reads no checkpoint."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from megrez.compile.families.family import Family


@cache
def families() -> tuple[Family, ...]:
    """In the order of their modules' names."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"megrez.compile.families.{name}") for name in names]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def by_architecture() -> dict[str, Family]:
    """By the class name in config.json's `architectures`."""
    return {family.architecture: family for family in families()}


def by_model_type() -> dict[str, Family]:
    return {family.model_type: family for family in families()}


def by_gguf_architecture() -> dict[str, Family]:
    """By `general.architecture` of .gguf files."""
    return {family.gguf.architecture: family for family in families() if family.gguf is not None}
