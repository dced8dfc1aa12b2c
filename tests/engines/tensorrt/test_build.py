"""Engines built for real, ahead of time, by TensorRT-RTX: audited, and refused where they do otherwise than asked."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from megrez.engines.tensorrt import PLAN_FILE
from megrez.engines.tensorrt.build import build
from megrez.engines.tensorrt.plan import PlanRequest
from megrez.runtime.errors import EngineError, UsageError
from tests import engine_graphs as broken
from tests.engine_graphs import ONE_LAYER, SHAPE, engine_graph

CAPABILITIES = {
    "trt-fp16": (80, 86, 89, 120),
    "trt-int8": (80, 86, 89, 120),
    "trt-fp8": (89, 120),
    "trt-int4": (80, 86, 89, 120),
    "trt-nvfp4": (120,),
}


def request(capabilities: tuple[int, ...] = (89,), **changes: Any) -> PlanRequest:
    fields = {"slots": 2, "chunk": 16, "max_logits": 4, **changes}
    return PlanRequest(library="tensorrt_rtx", capabilities=capabilities, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine of two layers. steps: what was told of its building."""

    folder: Path
    device: Any
    steps: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def built(checkpoint_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A target's engine, built by the first test that asks."""

    @functools.cache
    def make(target: str) -> Built:
        folder, steps = tmp_path_factory.mktemp(target), []
        graph = engine_graph(checkpoint_of(**SHAPE), target)
        device = build(graph, folder, request(CAPABILITIES[target]), building=lambda *step: steps.append(step))
        return Built(folder=folder, device=device, steps=steps)

    return make


@pytest.mark.parametrize("target", CAPABILITIES)
def test_every_projection_and_attention_is_one_kernel_of_the_types_asked_for(
    built: Callable[[str], Built], target: str
) -> None:
    folder, device = built(target).folder, built(target).device
    assert {path.name for path in folder.iterdir()} == {PLAN_FILE, "fusion.json"}
    fusion = json.loads((folder / "fusion.json").read_text())
    kind = target.removeprefix("trt-").removeprefix("nv")
    types = {"fp16": 9} if kind == "fp16" else {kind: 8, "fp16": 1}
    assert fusion["decode"] == {
        "attention_kernels": {"_gemv_mha_v1": 2},
        "cache_copies": 0,
        "gemm_types": types,
        "unfused": [],
    }
    assert fusion["prefill"]["gemm_types"] == types and fusion["prefill"]["unfused"] == []
    assert device.capabilities == tuple(f"sm_{one}" for one in CAPABILITIES[target])
    assert (device.library, device.slots, device.chunk, device.max_logits) == ("tensorrt_rtx", 2, 16, 4)


def test_ctrl_c_ends_a_build(checkpoint_of: Any, tmp_path: Path) -> None:
    """Wherever Python runs meanwhile: here where it is told of a phase."""
    graph = engine_graph(checkpoint_of(**ONE_LAYER), "trt-fp16")
    told: list[int] = []

    def strike(phase: str, done: int, total: int) -> None:
        told.append(done)
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(graph, tmp_path, request(), building=strike)
    assert not (tmp_path / "fusion.json").exists() and told


def test_weights_are_not_twice_in_the_plan_of_a_single_sequence(
    built: Callable[[str], Built], checkpoint_of: Any, tmp_path: Path
) -> None:
    two = built("trt-fp8")
    one = build(engine_graph(checkpoint_of(**SHAPE), "trt-fp8"), tmp_path, request(CAPABILITIES["trt-fp8"], slots=1))
    assert (one.slots, two.device.slots) == (1, 2)
    assert one.memory_bytes == two.device.memory_bytes
    sizes = [(folder / PLAN_FILE).stat().st_size for folder in (tmp_path, two.folder)]
    assert abs(sizes[0] - sizes[1]) < 10_000


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (broken.make_causal, "model.layers.0.self_attn has no mask in _gemv_mha_v1 in decode"),
        (broken.scale_queries_beforehand, "past_key_values.0.key is copied by __myl_Move"),
        (
            broken.unround_an_input,
            "model.layers.0.mlp.down_proj should multiply in fp8 but multiplies in fp8*fp16 in decode",
        ),
        (broken.change_a_dequantised_matrix, "model.layers.0.mlp.down_proj should multiply in fp8 but multiplies in "),
    ],
)
def test_an_engine_that_does_otherwise_is_refused_by_its_kernels(
    checkpoint_of: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[ir.Model], None],
    said: str,
) -> None:
    monkeypatch.setattr("megrez.engines.tensorrt.build.graph_faults", lambda model: [])  # what the kernels show alone
    model = engine_graph(checkpoint_of(**ONE_LAYER), "trt-fp8")
    breaks(model)
    with pytest.raises(EngineError) as caught:
        build(model, tmp_path, request())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "breaks",
    [broken.make_causal, broken.hide_the_token_itself, broken.copy_a_cache_before_it_is_returned],
)
def test_a_broken_graph_is_refused_before_anything_is_built(
    checkpoint_of: Any, tmp_path: Path, breaks: Callable[[ir.Model], None]
) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp8")
    breaks(model)
    with pytest.raises(EngineError, match=r"^the graph cannot be built: .*0"):
        build(model, tmp_path, request())
    assert list(tmp_path.iterdir()) == []


def test_what_the_library_refuses_is_told_in_its_words(checkpoint_of: Any, tmp_path: Path) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp8")
    with pytest.raises(EngineError, match=r"^tensorrt_rtx [\d.]+ cannot build the engine: .*sm80.*fp8"):
        build(model, tmp_path, request((80,)))


def test_a_graph_that_cannot_be_parsed(checkpoint_of: Any, tmp_path: Path) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp16")
    broken.insert(model, "NoSuchOperator", broken.find(model, "Attention")[0], 0)
    with pytest.raises(EngineError, match=r"^tensorrt_rtx [\d.]+ cannot parse the graph: .*NoSuchOperator"):
        build(model, tmp_path, request())


def test_a_device_that_the_library_does_not_know_is_refused_first(checkpoint_of: Any, tmp_path: Path) -> None:
    model = engine_graph(checkpoint_of(**SHAPE), "trt-fp16")
    with pytest.raises(UsageError, match=r"cannot build ahead of time for sm_87 \(orin\), only for .*--stage onnx"):
        build(model, tmp_path, request((87,)))


def test_a_full_disk_is_what_is_reported(checkpoint_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None: ...

    model = engine_graph(checkpoint_of(**ONE_LAYER), "trt-fp16")
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **options: Full() if self.name == PLAN_FILE else real(self, *args, **options)
    )
    with pytest.raises(OSError, match="No space left on device"):
        build(model, tmp_path, request())


def test_progress_is_told_in_steps_of_the_builder(built: Callable[[str], Built]) -> None:
    told = built("trt-fp16").steps
    assert told and told[0][1] == 0 and all(0 <= done <= total for _, done, total in told)
    assert told[-1][1] == told[-1][2]
