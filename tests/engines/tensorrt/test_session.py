"""The session's logic on a device of numpy arrays, held to FakeSession: buffers, profiles, pieces, graphs, errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megrez.engines.tensorrt.numpy_device import NumpyDevice
from megrez.engines.tensorrt.plan_shape import PlanShape, session_bytes
from megrez.engines.tensorrt.session import TensorRtSession
from megrez.runtime.errors import UsageError
from megrez.runtime.generate import generate
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.session import FakeSession
from tests.session_contract import Contract, check_session, one_hot_sum

SHAPE = PlanShape(slots=3, chunk=4, max_logits=5, layers=2, kv_heads=2, capacity=24, head_dim=3, vocab_size=17)
RANDOM = np.random.default_rng(3)


def pair(slots: int = 1, **changes: Any) -> tuple[TensorRtSession, NumpyDevice, FakeSession]:
    device = NumpyDevice(shape=SHAPE, **changes)
    return TensorRtSession(device, SHAPE, slots=slots), device, FakeSession(vocab_size=17, capacity=24, slots=slots)


def step(session: Any, tokens: Any, lengths: Any, rows: Any) -> Any:
    """A copy: logits are valid until the next step only."""
    return session.step(np.array(tokens), np.array(lengths, np.int32), np.array(rows, np.int64)).copy()


def both(session: Any, fake: Any, tokens: Any, lengths: Any, rows: Any) -> None:
    np.testing.assert_array_equal(step(session, tokens, lengths, rows), step(fake, tokens, lengths, rows))


@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize(("head_dim", "alignment"), [(16, 1), (3, 8), (4, 2)])
def test_the_contract_of_every_session(head_dim: int, alignment: int, capturable: bool) -> None:
    """Where rows are no multiple of TensorRT's alignment, fewer of them can be the first of a run."""
    shape = replace(SHAPE, slots=4, head_dim=head_dim, capacity=24)
    assert shape.entry_alignment == alignment

    def opened(slots: int) -> TensorRtSession:
        device = NumpyDevice(shape=shape, capturable=capturable)
        session = TensorRtSession(device, shape, slots=slots)
        for address in session._caches.addresses.values():
            device.view(address, (shape.cache_bytes(slots) // 2,), np.float16)[:] = 99
        return session

    contract = Contract(open=opened, reference=one_hot_sum(17), tolerance=0, vocab_size=17)
    check_session(contract)
    rows = [session._order.entries_of(np.arange(session.slots)).tolist() for session in contract.opened]  # type: ignore[attr-defined]
    assert any(one != sorted(one) for one in rows)


def test_idle_slots_cost_nothing_and_a_graph_belongs_to_its_rows() -> None:
    device = NumpyDevice(shape=replace(SHAPE, head_dim=16))
    session = TensorRtSession(device, device.shape, slots=3)
    device.log.clear()
    for slots in ([0], [2], [1, 2], [0], [2], [1, 2]):
        session.step([5] * len(slots), [0] * len(slots), [], slots=slots)
    session.step([1, 2, 3], [0], [2], slots=[1])
    assert device.log == [
        *("enqueue 0 (1, 1)", "capture 0 (1, 1)"),
        *("enqueue 0 (1, 1)", "capture 0 (1, 1)"),
        *("enqueue 0 (2, 1)", "capture 0 (2, 1)"),
        *("launch",) * 3,
        "enqueue 1 (1, 3)",
    ]


def test_recordings_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megrez.engines.tensorrt.session.MAX_GRAPHS", 1)
    device = NumpyDevice(shape=replace(SHAPE, head_dim=16))
    session = TensorRtSession(device, device.shape, slots=2)
    device.log.clear()
    for slot in (0, 1, 1, 0):
        session.step([5], [0], [], slots=[slot])
    assert [line.split()[0] for line in device.log] == ["enqueue", "capture", "enqueue", "enqueue", "launch"]


def test_prefill_and_decode_write_and_read_one_cache() -> None:
    session, device, fake = pair()
    both(session, fake, [[3, 1, 4]], [0], [2])
    both(session, fake, [[1]], [3], [0])
    both(session, fake, [[5, 9, 2]], [4], [2])
    both(session, fake, [[6]], [7], [0])
    profiles = [line for line in device.log if line.startswith("enqueue")]
    assert profiles == ["enqueue 1 (1, 3)", "enqueue 0 (1, 1)", "enqueue 1 (1, 3)"]


def test_buffers_are_allocated_once_and_account_for_all_memory() -> None:
    session, device, _ = pair(slots=2)
    allocated = [int(line.split()[1]) for line in device.log]
    assert sum(allocated) == session_bytes(SHAPE, 2)
    assert allocated.count(2 * 2 * 2 * 24 * 3) == 4  # float16 [2, 2, 24, 3]: a key and a value of two layers
    for length in range(6):
        step(session, [[1], [2]], [length, length], [0, 1])
    step(session, [[1] * 9, [2] * 9], [6, 6], [8])
    assert sum(line.startswith("allocate") for line in device.log) == len(allocated)


def test_a_decoding_step_is_recorded_once_and_then_replayed_whatever_rows_are_wanted() -> None:
    session, device, fake = pair(slots=2)
    for length in range(3):
        both(session, fake, [[length], [7]], [length, length], [0, 1])
    both(session, fake, [[1], [2]], [3, 3], [1])
    both(session, fake, [[2, 2], [3, 3]], [4, 4], [3])
    both(session, fake, [[1], [2]], [6, 6], [1])
    both(session, fake, [[4], [5]], [7, 7], [0, 1])
    assert [line for line in device.log if not line.startswith("allocate")] == [
        "enqueue 0 (2, 1)",
        "capture 0 (2, 1)",
        "launch",
        "launch",
        "launch",
        "enqueue 1 (2, 2)",
        "launch",
        "launch",
    ]


def test_without_capture_every_step_is_queued() -> None:
    session, device, fake = pair(capturable=False)
    for length in range(3):
        both(session, fake, [[length + 1]], [length], [0])
    asked = [line.split()[0] for line in device.log if not line.startswith("allocate")]
    assert asked == ["enqueue", "capture", "enqueue", "enqueue"]


def test_a_long_prompt_is_read_in_pieces_as_if_whole() -> None:
    session, device, fake = pair()
    both(session, fake, [RANDOM.integers(0, 17, 14).tolist()], [0], [13])
    both(session, fake, [[2]], [14], [0])
    assert [line for line in device.log if line.startswith("enqueue")] == [
        "enqueue 1 (1, 4)",
        "enqueue 1 (1, 4)",
        "enqueue 1 (1, 4)",
        "enqueue 1 (1, 2)",
        "enqueue 0 (1, 1)",
    ]


@pytest.mark.parametrize("rows", [[], [0], [7, 0, 7], list(range(18)), [17, 8], list(range(17, -1, -1))])
def test_any_rows_of_a_ragged_batch_are_given(rows: list[int]) -> None:
    session, _, fake = pair(slots=2)
    both(session, fake, [[3, 5], [7, 11]], [0, 0], [1, 2])
    tokens = RANDOM.integers(0, 17, (2, 9))
    both(session, fake, tokens, [2, 1], rows)
    both(session, fake, [[1], [1]], [11, 10], [0, 1])


def test_more_rows_than_a_step_gives_make_narrower_pieces() -> None:
    session, device, fake = pair(slots=3)
    both(session, fake, RANDOM.integers(0, 17, (3, 4)), [0, 0, 0], range(12))
    assert [line for line in device.log if line.startswith(("enqueue", "launch"))] == ["enqueue 0 (3, 1)"] + [
        "launch"
    ] * 3


def test_what_lies_behind_a_sequence_is_never_read() -> None:
    session, _, fake = pair()
    step(session, [[9, 9, 9, 9, 9, 9]], [0], [5])
    fake.step(np.full((1, 6), 4), np.array([0], np.int32), np.array([0]))
    both(session, fake, [[2, 3]], [0], [1])
    both(session, fake, [[5]], [2], [0])


def test_generation_is_greedy_over_what_the_engine_tells() -> None:
    session, _, fake = pair()
    runs = [
        [
            found.token
            for found in generate(
                one, [3, 1, 4, 1, 5, 9], SamplingParams(temperature=0.0), stop_ids=(), max_tokens=15, chunk=5
            )
        ]
        for one in (session, fake)
    ]
    assert runs[0] == runs[1] and len(set(runs[0])) > 3


def test_room_for_fewer_tokens_may_be_asked_for() -> None:
    session = TensorRtSession(NumpyDevice(shape=SHAPE), SHAPE, capacity=8)
    step(session, [[1] * 8], [0], [7])
    with pytest.raises(UsageError, match=r"^8 cached and 1 new tokens do not fit the context of 8: "):
        step(session, [[1]], [8], [0])


def test_close_frees_the_device() -> None:
    session, device, _ = pair()
    step(session, [[1]], [0], [0])
    session.close()
    assert device.closed and device.free_bytes() == device.memory
