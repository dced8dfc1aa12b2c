"""The folder, moved and run where there is no other Python: a root with a shell, the C library and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from megrez.runtime.commands.bundle_runtime import bundle_runtime_command
from megrez.runtime.commands.capi import LIBRARY
from tests.reference import greedy
from tests.runtime.capi.conftest import ROOT

HANG_S = 300
PROMPT, COUNT = "the sea and", 12
Inside = Callable[..., subprocess.CompletedProcess[str]]


def needed(program: str) -> list[Path]:
    """The shared libraries of a program of the system, the loader included."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(one) for one in re.findall(r"(/\S+) \(0x", listed)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/bin/sh, glibc and /proc."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("ldd", "unshare", "chroot"))):
        pytest.skip("needs Linux with ldd, unshare and chroot")
    folder = tmp_path_factory.mktemp("root")
    shell = Path("/bin/sh").resolve()
    (loader,) = (one for one in needed(str(shell)) if one.name.startswith("ld-"))
    for name in ("bin", "proc", "opt", "lib"):
        (folder / name).mkdir()
    shutil.copy(shell, folder / "bin" / "sh")
    (folder / loader.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
    shutil.copy(loader, folder / loader.relative_to("/"))
    libraries = next(one for one in needed(str(shell)) if one.name.startswith("libc.so")).parent
    (folder / libraries.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for name in ("libc", "libm", "libdl", "libpthread", "librt", "libutil"):
        for library in libraries.glob(f"{name}.so.*"):
            shutil.copy(library, folder / libraries.relative_to("/"))
    return folder


@pytest.fixture(scope="module")
def inside(root: Path) -> Inside:
    """Run a command in the root."""
    own = [] if os.geteuid() == 0 else ["--map-root-user", "--pid", "--fork"]
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        arguments = ["unshare", "--mount", *own, "sh", "-c", script, root, *command]
        return subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=HANG_S, env={})

    if run("/bin/sh", "-c", "exit 7").returncode != 7:
        pytest.skip("this user may not change the root folder")
    return run


@pytest.fixture
def moved(root: Path, ort_bundle: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, str]:
    """(checkpoint, folder, what the command printed)."""
    (checkpoint, bundle), written = ort_bundle, tmp_path / "written"
    done = CliRunner().invoke(bundle_runtime_command, [str(written), "--bundle", str(bundle)])
    assert done.exit_code == 0, done
    folder = root / "opt" / "a folder"
    written.rename(folder)
    return checkpoint, folder, done.output


def expected(checkpoint: Path) -> str:
    """What transformers continues the prompt with."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(greedy(checkpoint, ids, COUNT), skip_special_tokens=True))


def test_it_runs_where_there_is_no_python(moved, inside, root):
    checkpoint, folder, printed = moved
    at = "/opt/a folder"
    done = inside(f"{at}/bin/megrez", "run", f"{at}/bundle", PROMPT, "--raw", "--max-tokens", COUNT)
    assert done.returncode == 0, done
    assert done.stdout == expected(checkpoint) + "\n"

    (packages,) = folder.glob("lib/python3*/site-packages")
    names = {path.name for path in packages.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"megrez", "numpy", "numpy.libs", "onnxruntime", "tokenizers", "jinja2", "markupsafe", "click"}
    assert not any((packages / "megrez" / name).exists() for name in ("compile", "calibration"))
    assert re.search(r"^in all +\d+\.\d MiB$", printed, re.MULTILINE)
    refused = inside(f"{at}/bin/megrez", "eval", f"{at}/bundle")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "megrez eval needs megrez.compile, which this folder leaves out" in refused.stderr

    if not LIBRARY.exists() or shutil.which("cc") is None:
        pytest.skip("libmegrez was not compiled")
    source = ROOT / "examples" / "embedding" / "stream.c"
    flags = [f"-I{folder}/include", f"-L{folder}/lib", "-lmegrez", f"-Wl,-rpath,{at}/lib"]
    subprocess.run(["cc", "-std=c99", source, "-o", folder / "stream", *flags], check=True)
    program = inside(f"{at}/stream", f"{at}/bundle", PROMPT, f'{{"max_tokens": {COUNT}}}')
    assert program.returncode == 0, program
    assert program.stdout.split("\n")[0] == expected(checkpoint)


def refusal(*args: object) -> str:
    found = CliRunner().invoke(bundle_runtime_command, [*map(str, args)]).exception
    assert found is not None
    return str(found)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, make_bundle):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty: name another folder" in refusal(tmp_path / "full")
    assert "there is no folder" in refusal(tmp_path / "none" / "folder")
    assert "needs the engine 'fake', and the folder has ort" in refusal(tmp_path / "new", "--bundle", make_bundle())
    assert "there is no bundle at" in refusal(tmp_path / "new", "--bundle", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "full"]
