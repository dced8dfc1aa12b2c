"""A hash of a model's config and stored weights; knows no tensor."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from megrez.compile.families.config import ModelConfig
from megrez.runtime.bundle import sha256_of
from megrez.runtime.errors import CheckpointError


def fingerprint_of(config: ModelConfig, files: Iterable[Path] = (), *, salt: str = "") -> str:
    """SHA-256 in hexadecimal of the config, the contents of `files` in order, and `salt`."""
    digest = hashlib.sha256(f"{config!r}\n{salt}\n".encode())
    for path in files:
        try:
            digest.update(sha256_of(path).encode())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its disk") from error
    return digest.hexdigest()
