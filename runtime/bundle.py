"""Opens a bundle folder and checks that its files are complete; independent of engines."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from megrez.runtime.errors import BundleError
from megrez.runtime.manifest import FILE_NAME, File, Manifest

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A folder whose files have the sizes that its manifest lists."""

    path: Path
    manifest: Manifest

    def find(self, name: str) -> Path | None:
        """The file `name` of the bundle, or None if the manifest does not list it."""
        listed = any(file.path == name for file in self.manifest.files)
        return self.path / name if listed else None

    @property
    def size(self) -> int:
        """Bytes on disk, the manifest included."""
        return (self.path / FILE_NAME).stat().st_size + sum(file.size for file in self.manifest.files)


def open_bundle(path: str | Path, *, verify: bool = False) -> Bundle:
    """Read the manifest and check every file's size; with `verify`, its SHA-256 too.

    Raises BundleError, one line that names every faulty file.
    """
    folder = Path(path)
    manifest = Manifest.from_json(_read_manifest(folder))
    faults = [fault for file in manifest.files if (fault := _fault(folder / file.path, file, verify))]
    if faults:
        raise BundleError(f"the bundle {folder} is damaged: {'; '.join(faults)}: copy or compile it again")
    return Bundle(path=folder, manifest=manifest)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> str:
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}: give the folder that megrez-compile wrote")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file: a bundle is the folder that megrez-compile wrote")
    try:
        return (folder / FILE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {FILE_NAME}: it is not a bundle, or its build did not finish; compile it again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / FILE_NAME} cannot be read ({error}): copy or compile the bundle again") from error


def _fault(path: Path, file: File, verify: bool) -> str | None:
    try:
        if not path.is_file():
            return f"{file.path} is missing"
        if (size := path.stat().st_size) != file.size:
            return f"{file.path} has {size} bytes, expected {file.size}"
        if verify and (found := sha256_of(path)) != file.sha256.lower():
            return f"{file.path} has SHA-256 {found}, expected {file.sha256}"
    except OSError as error:
        return f"{file.path} cannot be read ({error.strerror})"
    return None
