"""The portable dialect of whole models: standard operators, weights in the low type, one rounding for each input."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.engines.portable.session import open_session
from megrez.engines.targets import find_target
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import UsageError
from tests.graphs import canonical
from tests.portable import decoded, stage

TYPES = {
    "trt-int8": ir.DataType.INT8,
    "trt-fp8": ir.DataType.FLOAT8E4M3FN,
    "trt-int4": ir.DataType.INT4,
}
BLOCK = {"trt-int8": None, "trt-fp8": None, "trt-int4": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2-tied": {"family": "qwen2", "tied": True},
    "qwen3-biases": {"family": "qwen3", "biases": True},
}
# What a layer's projections are fused to, by the names of their initializers.
FUSED = {
    "self_attn.q_proj.weight+k_proj+v_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj.weight+up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
IDS = np.random.default_rng(0).integers(0, 320, 24).tolist()


def input_scale(target: str) -> Any:
    """A scale that lets a few inputs of each kind of projection saturate."""
    top = {"trt-int8": 127, "trt-fp8": 448}.get(target, 1)
    return lambda name: (3.0 if "self_attn" in name else 2.0) / top


def staged(folder: Path, target: str, output: Path) -> ir.Model:
    row = find_target(target)
    row = row if BLOCK[target] is None else row.with_block(32)
    return stage(folder, row, output, context=64, input_scale=input_scale(target))


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_is_standard_and_stored_small(checkpoint_of: Any, tmp_path: Path, target: str, shape: str) -> None:
    model = staged(checkpoint_of(**SHAPES[shape]), target, tmp_path / "b")
    assert set(model.opset_imports) == {""} and {node.domain for node in model.graph} == {""}
    onnx.checker.check_model(tmp_path / "b" / "model.onnx", full_check=True)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    weights = [node.inputs[1].producer() for node in products[:-1]]
    assert [node.op_type for node in weights] == ["DequantizeLinear"] * 8  # 2 layers of qkv, o, gate|up and down
    assert {node.inputs[0].dtype for node in weights} == {TYPES[target]}
    assert products[-1].outputs[0].name == "logits"  # the head, which stays
    rounded = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert len(rounded) == (0 if target == "trt-int4" else 8)
    stored = onnx.load(tmp_path / "b" / "model.onnx", load_external_data=False).graph.initializer
    big = {tensor.data_type for tensor in stored if tensor.name.endswith(".codes")}
    assert big == {TYPES[target].value}
    assert not [name for name in model.graph.initializers if name.endswith("_proj.weight")]


@pytest.mark.parametrize("target", ["trt-int8", "trt-fp8"])
def test_lowering_without_ranges_asks_for_calibration(checkpoint_of: Any, target: str) -> None:
    checkpoint = open_checkpoint(str(checkpoint_of()))
    with pytest.raises(
        UsageError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight has no input scale: calibrate on a text"
    ):
        lower(canonical(checkpoint), checkpoint, find_target(target))


def torch_model(folder: Path, model: ir.Model, target: str) -> Any:
    """transformers' model with the weights that the graph's initializers tell."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()
    with torch.no_grad():
        for i, layer in enumerate(loaded.model.layers):
            for stem, parts in FUSED.items():
                matrix = decoded(model, f"model.layers.{i}.{stem}", BLOCK[target]).T
                modules = [layer.get_submodule(part) for part in parts]
                rows = np.split(matrix, np.cumsum([module.out_features for module in modules])[:-1])
                for module, part in zip(modules, rows, strict=True):
                    module.weight.copy_(torch.from_numpy(part))
    return loaded


def round_inputs(loaded: Any, target: str) -> None:
    def hook(scale: float) -> Any:
        def rounding(module: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            steps = arguments[0] / scale
            if target == "trt-int8":
                return (steps.round().clamp(-128, 127) * scale,)
            return (steps.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)

        return rounding

    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook(float(np.float32(input_scale(target)(name)))))


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_rounded_model(checkpoint_of: Any, tmp_path: Path, target: str, shape: str) -> None:
    folder = checkpoint_of(**SHAPES[shape])
    model = staged(folder, target, tmp_path / "b")
    session = open_session(open_bundle(tmp_path / "b"), threads=1)
    ours = session.step(np.array([IDS]), np.zeros(1, np.int32), np.arange(24))
    loaded = torch_model(folder, model, target)
    if target != "trt-int4":
        round_inputs(loaded, target)
    with torch.no_grad():
        expected = loaded(torch.tensor([IDS])).logits[0].numpy()
    # Where an input lies between two steps, the two may round it apart: a step of one input is 0.02 of a logit at most.
    difference = np.abs(ours - expected)
    assert np.median(difference) < 1e-5 and difference.max() < 0.02
