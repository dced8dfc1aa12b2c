"""A graph that is not whole on the NPU fails its build, by the session's own report; groups share a context or not."""

from types import SimpleNamespace
from typing import Any

import pytest

from megrez.engines.qnn.build import CONTEXT_LIMIT, _context_bytes, _groups, check_assignment
from megrez.engines.qnn.library import PROVIDER
from megrez.runtime.errors import EngineError


def report(**nodes: int) -> Any:
    """A session whose nodes were given to these providers."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count) for name, count in nodes.items()
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


def test_every_node_must_be_the_npu_s() -> None:
    check_assignment("decode-00", report(**{PROVIDER: 384}))
    with pytest.raises(EngineError) as caught:
        check_assignment("decode-00", report(**{PROVIDER: 380, "CPUExecutionProvider": 4}))
    assert str(caught.value) == (
        "decode-00 does not run entirely on the NPU: 4 nodes to CPUExecutionProvider: report this as a bug"
    )


def test_graphs_of_one_part_share_a_context_where_that_is_asked() -> None:
    assert _groups(2, False) == [["prefill-00"], ["decode-00"], ["prefill-01"], ["decode-01"], ["head"]]
    assert _groups(2, True) == [["prefill-00", "decode-00"], ["prefill-01", "decode-01"], ["head"]]


def test_a_context_that_an_npu_cannot_address_is_refused(tmp_path: Any) -> None:
    assert _context_bytes(tmp_path) == 0
    (tmp_path / "a.bin").write_bytes(b"1234")
    assert _context_bytes(tmp_path) == 4
    with (tmp_path / "b.bin").open("wb") as file:
        file.truncate(CONTEXT_LIMIT + 1)  # a hole, which takes no space
    with pytest.raises(EngineError, match="a context has 3584 MiB, an NPU addresses 3584 MiB"):
        _context_bytes(tmp_path)
