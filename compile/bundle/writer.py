"""Write a bundle: the engine's files, the text assets, and the manifest last; knows no graph."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megrez.compile.bundle.atomic_folder import atomic_folder
from megrez.compile.bundle.output import check_output
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.runtime import chat
from megrez.runtime import text as text_codec
from megrez.runtime.bundle import Bundle, sha256_of
from megrez.runtime.errors import BundleError
from megrez.runtime.manifest import FILE_NAME, CacheFidelity, Device, File, Manifest, Measured


@dataclass(frozen=True, slots=True)
class NewBundle:
    """A bundle that is being written: the engine's files go into `folder`, which becomes `output`."""

    output: Path
    folder: Path

    def finish(self, manifest: Manifest, text: TextAssets | None, device: Device | None) -> Bundle:
        """Write the text assets and the manifest, which lists all files; returns the bundle, which can now be opened.

        manifest: see megrez.compile.bundle.describe. device: what the engine needs.
        """
        if text is not None:
            _write_text(text, self.folder)
        manifest = replace(manifest, device=device, files=_list_files(self.folder))
        if faults := manifest.faults():
            raise BundleError(f"the bundle {self.output} would not open: {'; '.join(faults)}: report this as a bug")
        (self.folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
        return Bundle(path=self.folder, manifest=manifest)

    def state(self, finished: Bundle, measured: Measured | None, cache: tuple[CacheFidelity, ...] = ()) -> None:
        """Add the measured fidelity, and that of the KV cache's format, to the finished bundle's manifest."""
        manifest = finished.manifest
        manifest = replace(
            manifest,
            measured=measured or manifest.measured,
            kv_cache=replace(manifest.kv_cache, fidelity=cache),
        )
        (self.folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")


@contextlib.contextmanager
def new_bundle(output: Path) -> Iterator[NewBundle]:
    """A bundle to build and `finish`, which becomes `output` at the end; after any failure, `output` is unchanged.

    An existing bundle is replaced when the new one is complete.
    Raises BundleError where the disk is full, UsageError where `output` is not a bundle.
    """
    check_output(output)
    try:
        with atomic_folder(output) as folder:
            yield NewBundle(output, folder)
    except OSError as error:
        raise BundleError(_what_failed(error, output)) from error


def _what_failed(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: free some space or choose another -o"
    reason = error.strerror or str(error)
    if error.filename is None or Path(os.fsdecode(error.filename)).absolute().is_relative_to(output.absolute().parent):
        return f"cannot write {output}: {reason}: choose another -o"
    return f"cannot build {output}, {error.filename} failed: {reason}: check that file and compile again"


def _write_text(text: TextAssets, folder: Path) -> None:
    (folder / text_codec.FILE_NAME).write_bytes(text.tokenizer_json)
    if text.chat_template is not None:
        (folder / chat.FILE_NAME).write_text(text.chat_template, encoding="utf-8")


def _list_files(folder: Path) -> tuple[File, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        File(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    )
