"""Builds libmegrez.so, and the kernels, as setuptools does, with one compiler per core; pyproject.toml names it.

Needed by nothing that runs.

libmegrez is no Python module: it has the name of a plain library, is linked with no Python, and knows where the Python
that it was built for is, in case nothing nearer is found.
"""

import os
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext

LIBRARY = "libmegrez"
# A Python that runs in the process holds pointers into the library: it stays where dlclose would unload it.
LINK_FLAGS = ["-Wl,-z,nodelete", "-Wl,--no-undefined", "-Wl,-soname,libmegrez.so", "-ldl", "-lpthread"]


def definitions(version: str) -> list[tuple[str, str]]:
    """What python.c and megrez.c know of this Python, as C strings. version: of megrez-compile."""
    name = sysconfig.get_config_var("INSTSONAME") or f"libpython{sysconfig.get_python_version()}.so.1.0"
    if not name.startswith("libpython") or name.endswith(".a"):  # of a Python without its shared library
        name = f"libpython{sysconfig.get_python_version()}.so.1.0"
    known = {
        "MEGREZ_LIBPYTHON": name,
        "MEGREZ_LIBPYTHON_FOLDER": sysconfig.get_config_var("LIBDIR") or "/usr/lib",
        "MEGREZ_PYTHON_PROGRAM": sys.executable,
        "MEGREZ_PACKAGE_VERSION": version,
    }
    return [(macro, _c_string(text)) for macro, text in known.items()]


class BuildLibrary(build_ext):  # type: ignore[misc]
    def build_extensions(self) -> None:
        """Three of the sources take longer to compile than all others together."""
        compile_all = self.compiler.compile

        def compile_at_once(sources: Sequence[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [one for found in objects for one in found]

        self.compiler.compile = compile_at_once
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Without debugging information, which Python's own flags ask for: ten times the size, twice the time."""
        if self.compiler.compiler_type == "unix":
            ext.extra_compile_args.append("-g0")
        if _is_library(ext.name):
            ext.define_macros += definitions(self.distribution.get_version())
            ext.extra_link_args += LINK_FLAGS if sys.platform.startswith("linux") else []
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        if _is_library(fullname):
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return str(super().get_ext_filename(fullname))


def _is_library(name: str) -> bool:
    return name.rpartition(".")[2] == LIBRARY


def _c_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
