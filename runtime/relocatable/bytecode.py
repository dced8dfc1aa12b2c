"""Compiled modules that stay valid wherever, and with whatever times, a folder is copied. Source: PEP 552."""

import importlib.util
import marshal
from pathlib import Path

_BY_TIME, _UNCHECKED = (0).to_bytes(4, "little"), (1).to_bytes(4, "little")
_HEADER = 16


def bytecode_of(source: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(source), optimization=""))


def write_bytecode(source: Path, target: Path) -> None:
    """Beside `target`, a copy of `source`: the bytecode that lies beside the source, or what it compiles to."""
    text = source.read_bytes()
    code = _cached(source) or marshal.dumps(compile(text, str(target), "exec", dont_inherit=True, optimize=0))
    output = bytecode_of(target)
    output.parent.mkdir(exist_ok=True)
    output.write_bytes(importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(text) + code)


def _cached(source: Path) -> bytes | None:
    """What Python compiled of this very source."""
    try:
        cached = bytecode_of(source).read_bytes()
    except OSError:
        return None
    about = source.stat()
    times = [int(number) & 0xFFFFFFFF for number in (about.st_mtime, about.st_size)]
    header = importlib.util.MAGIC_NUMBER + _BY_TIME + b"".join(one.to_bytes(4, "little") for one in times)
    return cached[_HEADER:] if cached[:_HEADER] == header else None
