"""The files that start Python in a folder that may lie anywhere."""

from collections.abc import Sequence

_PROGRAM = """\
#!/bin/sh
# megrez with the Python and the libraries of this folder, wherever it lies.
program=$0
[ -L "$program" ] && program=$(readlink -f "$program")
folder=$(cd "${{program%/*}}/.." && pwd -P) || exit
LD_LIBRARY_PATH=$folder/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
export LD_LIBRARY_PATH
exec "$folder/bin/{python}" -I -c 'from megrez.runtime.cli import program; program()' "$@"
"""
_SITE = '''\
"""Loads the shared libraries of this folder, where the system's loader does not look for what modules need."""

import _imp
import sys
from importlib.machinery import ModuleSpec

for name in {names!r}:
    try:
        _imp.create_dynamic(ModuleSpec("library", None, origin=f"{{sys.prefix}}/lib/{{name}}"))
    except ImportError:  # it is loaded, and no module
        pass
'''


def program(python: str) -> str:
    """bin/megrez, for sh. python: the name of the program beside it."""
    return _PROGRAM.format(python=python)


def site_customization(libraries: Sequence[str]) -> str:
    """sitecustomize.py, which Python imports as it starts. libraries: names in lib, what others need first."""
    return _SITE.format(names=tuple(libraries))
