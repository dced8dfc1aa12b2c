"""Calibration's state on disk, from which an interrupted run resumes; knows no algorithm.

One folder per request: finished layers, the hidden states after the last of them, and progress.json, which is written
last. A layer that progress.json does not list was not finished and is calibrated again.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megrez.calibration.layer import Streams
from megrez.calibration.recipe import Calibrated, GroupResult
from megrez.calibration.results.layer_file import write_layer
from megrez.calibration.results.record import describe_file
from megrez.runtime.manifest import File
from megrez.runtime.records import parse

PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """layers: the number finished, the LM head counted as one. groups, files: theirs, as in Record."""

    layers: int
    groups: dict[str, GroupResult]
    files: tuple[File, ...]


_NOTHING = Progress(layers=0, groups={}, files=())


class Store:
    """The state of one request in `folder`; file paths are relative to the folder's parent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.progress = self._read()

    def resume(self, streams: Streams) -> Streams:
        """The hidden states after the last finished layer; `streams` where there is none."""
        if self.progress.layers == 0:
            return streams
        try:
            with self._hidden(self.progress.layers).open("rb") as file:
                reference, quantized = np.load(file), np.load(file)
        except (OSError, EOFError, ValueError):  # incomplete: start again
            self.progress = _NOTHING
            return streams
        return dataclasses.replace(streams, reference=reference, quantized=quantized)

    def save(self, calibrated: Calibrated, streams: Streams) -> None:
        """Record a finished layer, or the LM head. streams: the hidden states after it."""
        done = self.progress
        path = self.folder / f"{done.layers:03d}.safetensors"
        write_layer(path, calibrated)
        self._write_hidden(done.layers + 1, streams)
        self.progress = Progress(
            layers=done.layers + 1,
            groups=done.groups | calibrated.groups,
            files=(*done.files, describe_file(path, self.folder.parent)),
        )
        self._replace(PROGRESS, json.dumps(dataclasses.asdict(self.progress)).encode())
        self._hidden(done.layers).unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove all but the files that a Record lists."""
        for path in [self.folder / PROGRESS, *self.folder.glob("hidden-*")]:
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> Progress:
        faults: list[str] = []
        try:
            progress = parse(Progress, json.loads((self.folder / PROGRESS).read_bytes()), faults)
        except (OSError, ValueError):
            return _NOTHING
        complete = not faults and all(self._is_complete(file) for file in progress.files)
        return progress if complete and self._hidden(progress.layers).is_file() else _NOTHING

    def _is_complete(self, file: File) -> bool:
        path = self.folder.parent / file.path
        return path.is_file() and path.stat().st_size == file.size

    def _hidden(self, layers: int) -> Path:
        return self.folder / f"hidden-{layers:03d}.npy"

    def _write_hidden(self, layers: int, streams: Streams) -> None:
        partial = self.folder / "hidden.partial"
        with partial.open("wb") as file:  # written, not mapped: a full disk is then an error and not a signal
            for stream in (streams.reference, streams.quantized):
                np.save(file, stream.astype("<f4", copy=False))
        partial.replace(self._hidden(layers))

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_bytes(data)
        partial.replace(self.folder / name)
