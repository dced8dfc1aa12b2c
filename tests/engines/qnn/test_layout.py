"""npu.json comes back as it was written; anything else is one clear line."""

import json
from pathlib import Path

import pytest

from megrez.engines.qnn.affine import Affine
from megrez.engines.qnn.layout import LAYOUT_FILE, Compiled, Layout, read_layout
from megrez.runtime.errors import BundleError

LAYOUT = Layout(
    chunk=64,
    parts=2,
    logits=Affine(bits=16, scale=0.5, zero_point=7),
    compiled=Compiled(chip="snapdragon-8-elite", soc_model=69, htp_arch=79, shared=False),
)


def test_it_comes_back(tmp_path: Path) -> None:
    LAYOUT.write(tmp_path)
    assert read_layout(tmp_path) == LAYOUT
    assert LAYOUT.graphs == ("prefill-00", "prefill-01", "decode-00", "decode-01", "head")


def test_what_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"npu\.json cannot be read .*: compile the bundle again"):
        read_layout(tmp_path)
    LAYOUT.write(tmp_path)
    data = json.loads((tmp_path / LAYOUT_FILE).read_text())
    (tmp_path / LAYOUT_FILE).write_text(json.dumps({**data, "parts": "two", "colour": 1}))
    with pytest.raises(BundleError, match=r"colour is not a known field; parts is str, not int"):
        read_layout(tmp_path)
    (tmp_path / LAYOUT_FILE).write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        read_layout(tmp_path)
