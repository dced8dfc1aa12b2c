"""The header parser agrees with the gguf package's reader, and survives every cut."""

import struct
from pathlib import Path

import gguf
import pytest

from megrez.compile.checkpoint.gguf.file import read_header
from megrez.runtime.errors import CheckpointError
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    more = {"some.flag": True, "some.array": [1.5, 2.5], "some.names": ["a", "é"]}
    return make_gguf(folder / "tiny.gguf", make_checkpoint(folder / "hf"), kind="Q4_1", metadata=more)


def test_agrees_with_the_gguf_reader(path: Path) -> None:
    header, reference = read_header(path), gguf.GGUFReader(path)
    for tensor in reference.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.kind, ours.start, ours.size) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
    assert len(header.tensors) == len(reference.tensors)
    named = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == named


def test_a_cut_is_told_with_its_sizes(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:-5000])
    with pytest.raises(
        CheckpointError, match=rf"cut\.gguf is truncated: expected \d+ bytes, found {len(whole) - 5000}"
    ):
        read_header(cut)


def test_a_cut_anywhere_in_the_header_is_an_error(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, min(len(whole), 12000), 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            read_header(cut)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GGML" + bytes(60), "is not a GGUF file (it starts with b'GGML')"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "is GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "truncated or damaged inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "metadata of unknown type 77"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes, told: str) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(wrong)
    assert told in str(caught.value)


def test_an_unknown_storage_type_is_left_to_who_needs_the_tensor(tmp_path: Path) -> None:
    entry = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, 999, 0)
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + bytes(4096))
    assert read_header(odd).tensors["t"].kind == "GGML type 999"
