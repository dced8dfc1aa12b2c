"""What calibration writes: a readable JSON of scales, and beside it the quantised matrices, one file per layer.

Knows neither how scales are computed nor what reads them.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path

from megrez.calibration.recipe import GroupResult
from megrez.runtime.bundle import sha256_of
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Calibration, Fidelity, File
from megrez.runtime.records import parse

SCHEMA_VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One calibration. target: the one it is for. model_sha256: of the weights and config it belongs to.

    input_type: of the projections' inputs, "int8", "fp8" or "fp4"; None for float. finer: the tensors that
    --max-kl keeps in higher precision; None without --max-kl. groups: projection groups, by
    "model.layers.0.qkv" and so on, and "lm_head". fidelity: of the quantised model on held-out text, in simulation.
    files: paths are relative to the JSON's folder.
    """

    schema_version: int
    target: str
    algorithm: str
    input_type: str | None
    finer: tuple[str, ...] | None
    model: str
    model_sha256: str
    text: Calibration
    fidelity: Fidelity | None
    groups: dict[str, GroupResult]
    files: tuple[File, ...]

    @property
    def zero_channels(self) -> int:
        """Of all groups; see GroupResult."""
        return sum(group.zero_channels for group in self.groups.values())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_record(path: Path) -> Record:
    """Read scales and check that their files are there, by size; raises UsageError, one line for all faults."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as scales ({error}): give one of  megrez calibrate") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}, this version of megrez reads {SCHEMA_VERSION}: calibrate again"
        )
    faults: list[str] = []
    record = typing.cast(Record, parse(Record, data, faults))
    if not faults:
        faults = [fault for file in record.files if (fault := _fault(path.parent / file.path, file))]
    if faults:
        raise UsageError(f"the scales {path} are not complete: {'; '.join(faults)}: copy them again or calibrate again")
    return record


def describe_file(path: Path, root: Path) -> File:
    return File(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))


def check_hashes(record: Record, folder: Path) -> None:
    """Raise UsageError where a file under `folder` changed since `record` was written; reads all of them."""
    changed = [file.path for file in record.files if sha256_of(folder / file.path) != file.sha256]
    if changed:
        raise UsageError(
            f"the scales' {', '.join(changed)} changed since they were written: copy them again or calibrate again"
        )


def _fault(path: Path, file: File) -> str | None:
    if not path.is_file():
        return f"{file.path} is missing"
    size = path.stat().st_size
    return None if size == file.size else f"{file.path} has {size} bytes, expected {file.size}"
