"""The device of numpy arrays refuses what TensorRT refuses, and shows a copy that was not waited for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megrez.engines.tensorrt.device import DECODE, PREFILL
from megrez.engines.tensorrt.numpy_device import NumpyContext, NumpyDevice
from megrez.engines.tensorrt.plan_shape import PlanShape
from megrez.runtime.errors import EngineError

SHAPE = PlanShape(slots=2, chunk=4, max_logits=3, layers=1, kv_heads=1, capacity=8, head_dim=2, vocab_size=5)
CACHE = (1, 1, 8, 2)


def ready(profile: int = PREFILL, width: int = 2) -> tuple[NumpyDevice, NumpyContext]:
    """A context with all bound and shaped for one sequence of `width` tokens."""
    device = NumpyDevice(shape=SHAPE)
    context = device.open_context(profile)
    sizes = {"input_ids": 64, "write_indices": 16, "logits_index": 24, "logits": 30}
    for name, size in sizes.items():
        context.bind(name, device.allocate(size))
    for name in SHAPE.cache_names:
        address = device.allocate(SHAPE.cache_bytes(2))
        for kind in ("past_key_values", "present"):
            context.bind(f"{kind}.{name}", address)
        context.set_shape(f"past_key_values.{name}", CACHE)
    context.set_shape("write_indices", (1,))
    context.set_shape("input_ids", (1, width))
    context.set_shape("logits_index", (1,))
    return device, context


def test_nothing_happens_before_it_is_waited_for() -> None:
    device, context = ready()
    ids, found = np.array([3, 4]), np.zeros(5, np.float16)
    device.upload(context.addresses["input_ids"], ids)
    device.upload(context.addresses["logits_index"], np.array([1]))
    context.enqueue()
    device.download(context.addresses["logits"], found)
    assert not found.any()
    ids[1] = 1  # the copy was not made yet: what it takes is what is there then
    device.synchronize()
    assert found.argmax() == (3 + 1) % 5


def test_a_recorded_step_keeps_its_shapes_and_addresses() -> None:
    device, context = ready()
    graph = context.capture()
    assert graph is not None
    device.synchronize()
    assert not device.view(context.addresses["present.0.key"], CACHE, np.float16).any()
    device.upload(context.addresses["input_ids"], np.array([3, 4]))
    context.set_shape("input_ids", (1, 1))
    graph.launch()
    device.synchronize()
    assert device.view(context.addresses["present.0.key"], CACHE, np.float16)[0, 0, :, 0].tolist() == [3, 4] + [0] * 6


@pytest.mark.parametrize(
    ("profile", "name", "shape"),
    [
        (PREFILL, "input_ids", (1, 5)),
        (PREFILL, "input_ids", (3, 1)),
        (PREFILL, "input_ids", (1,)),
        (PREFILL, "logits_index", (4,)),
        (PREFILL, "logits_index", (0,)),
        (DECODE, "input_ids", (1, 2)),
        (DECODE, "logits_index", (3,)),
        (DECODE, "past_key_values.0.key", (1, 1, 7, 2)),
    ],
)
def test_a_shape_outside_the_profile_is_refused(profile: int, name: str, shape: tuple[int, ...]) -> None:
    _, context = ready(profile, width=1)
    with pytest.raises(EngineError, match=rf"^{name} is .*, profile {profile} takes "):
        context.set_shape(name, shape)


def move_the_output(context: NumpyContext) -> None:
    context.bind("present.0.value", context.device.allocate(SHAPE.cache_bytes(2)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda context: context.addresses.pop("logits"), "logits has no shape or no address"),
        (lambda context: context.shapes.pop("write_indices"), "write_indices has no shape"),
        (move_the_output, "present.0.value must be bound to the memory of past_key_values.0.value"),
    ],
)
def test_a_step_that_is_not_ready_is_refused(spoil: Callable[[NumpyContext], object], said: str) -> None:
    _, context = ready()
    spoil(context)
    for run in (context.enqueue, context.capture):
        with pytest.raises(EngineError, match=f"^{said}"):
            run()


@pytest.mark.parametrize("lost", range(2))
def test_a_token_that_one_cache_lost_shows_in_the_logits(lost: int) -> None:
    device, context = ready()
    device.upload(context.addresses["input_ids"], np.array([2, 1]))
    context.enqueue()
    device.synchronize()
    name = SHAPE.cache_names[lost]
    device.view(context.addresses[f"present.{name}"], CACHE, np.float16)[0, 0, 0] = 0
    found = np.zeros(5, np.float16)
    device.upload(context.addresses["write_indices"], np.array([2]))
    context.set_shape("input_ids", (1, 1))
    context.enqueue()
    device.download(context.addresses["logits"], found)
    device.synchronize()
    assert found.argmax() != (2 + 1 + 2) % 5


def test_memory_must_be_allocated() -> None:
    device = NumpyDevice(shape=replace(SHAPE, layers=2))
    address = device.allocate(8)
    assert device.view(address, (1,), np.int64).tolist() == [0]
    for wrong, shape in ((address - 1, (1,)), (address + 1, (1,)), (address, (2,))):
        with pytest.raises(EngineError, match="were never allocated"):
            device.view(wrong, shape, np.int64)


def test_pieces_are_copied_in_their_turn() -> None:
    device = NumpyDevice(shape=SHAPE)
    source, target = device.allocate(8), device.allocate(8)
    device.upload(source, np.arange(8, dtype=np.uint8))
    device.copy(target, source, size=2, pitch=4, pieces=2)
    device.upload(source, np.zeros(8, np.uint8))
    assert not device.view(target, (8,), np.uint8).any()
    device.synchronize()
    assert device.view(target, (8,), np.uint8).tolist() == [0, 1, 0, 0, 4, 5, 0, 0]


def test_a_tensor_must_lie_at_a_multiple_of_256_bytes() -> None:
    _, context = ready()
    with pytest.raises(EngineError, match=r"^logits is at 513, which is not a multiple of 256"):
        context.bind("logits", 513)
