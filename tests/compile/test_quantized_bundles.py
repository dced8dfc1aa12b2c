"""An int8 or int4 bundle computes transformers' model with the decoded weights, up to the rounding of activations.

How far rounding may move a logit is taken from transformers itself: run once with the decoded weights in float32, and
once more with the input of every projection rounded to int8 per block, as MatMulNBits documents it. ONNX Runtime may
round a tie the other way, after which later roundings differ too; so it gets twice the distance of these two.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx.numpy_helper import to_array

from benchmarks.gpu_reference import widen
from megrez.engines.ort.cuda import open_on_cpu
from megrez.engines.ort.session import open_session
from megrez.runtime.bundle import open_bundle
from tests.graphs import IDS as RAGGED_IDS
from tests.graphs import ragged
from tests.quantized import decode
from tests.reference import logits

IDS = np.random.default_rng(0).integers(0, 320, 24).tolist()
Q, K, V = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
# The bundle's matrices in a layer: which projections each stacks, and its bits.
MATRICES = {
    "cpu-int8": {
        f"{Q}.weight+k_proj+v_proj": ((Q, K, V), 8),
        "self_attn.o_proj": (("self_attn.o_proj",), 8),
        "mlp.gate_proj.weight+up_proj": (("mlp.gate_proj", "mlp.up_proj"), 8),
        "mlp.down_proj": (("mlp.down_proj",), 8),
    },
    "cpu-int4": {
        f"{Q}.weight+k_proj": ((Q, K), 4),
        V: ((V,), 8),
        "self_attn.o_proj": (("self_attn.o_proj",), 4),
        "mlp.gate_proj.weight+up_proj": (("mlp.gate_proj", "mlp.up_proj"), 4),
        "mlp.down_proj": (("mlp.down_proj",), 4),
    },
}
MATRICES |= {"cuda-int8": MATRICES["cpu-int8"], "cuda-int4": MATRICES["cpu-int4"]}
# Of the blocks up to the target's, those that store a row in the fewest bits: 96 and 160 columns, but 192 of o_proj.
BLOCK, O_BLOCK = 32, {4: 64, 8: 32}
# float16 has 11 bits; logits here are up to 4, after two layers.
HALF = 2e-2
# Their norms and tables of positions are float16 still; rounding inputs to int8 would move logits by 0.06.
WIDE = 2e-3


def decoded_model(folder: Path, bundle: Path, target: str) -> Any:
    """transformers' model of the checkpoint, its matrices those that the bundle's initializers stand for."""
    stored = {tensor.name: to_array(tensor) for tensor in onnx.load(bundle / "model.onnx").graph.initializer}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()
    state = model.state_dict()

    def parts(stem: str) -> list[Any]:
        return [stored.get(f"{stem}.{part}") for part in ("codes", "scales", "zero_points")]

    def fill(stem: str, names: tuple[str, ...], bits: int) -> None:
        block = O_BLOCK[bits] if stem.endswith("o_proj") else BLOCK
        matrix = torch.from_numpy(decode(*parts(stem), bits=bits, block=block))
        for name, rows in zip(names, matrix.split([len(state[f"{name}.weight"]) for name in names]), strict=True):
            state[f"{name}.weight"].copy_(rows[:, : state[f"{name}.weight"].shape[1]])

    for name in state:
        if name in stored and stored[name].ndim == 1:  # norms and biases, some of them turned with the matrices
            state[name].copy_(torch.tensor(stored[name]))
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        if f"{prefix}{Q}.bias+k_proj" in stored:
            both = torch.tensor(stored[f"{prefix}{Q}.bias+k_proj"])
            for name, part in zip((Q, K), both.split([len(state[f"{prefix}{n}.bias"]) for n in (Q, K)]), strict=True):
                state[f"{prefix}{name}.bias"].copy_(part)
        for stem, (names, bits) in MATRICES[target].items():
            fill(prefix + stem, tuple(prefix + name for name in names), bits)
    if "lm_head.common.codes" in stored:  # a 4-bit head: its first rows have 8 bits
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # no longer tied
        forms = {"lm_head.common": 8, "lm_head": 4}
        width = model.config.hidden_size
        rows = [decode(*parts(stem), bits=bits, block=BLOCK)[:, :width] for stem, bits in forms.items()]
        model.lm_head.weight.data = torch.from_numpy(np.concatenate(rows)).float()
        fill("model.embed_tokens", ("model.embed_tokens",), 8)
        return model
    for stem in ("model.embed_tokens", "lm_head"):
        if f"{stem}.codes" in stored:
            fill(stem, (stem,), 8)
    return model


def round_inputs(model: Any, block_of: Callable[[str], int]) -> None:
    """From now on every linear layer of `model` sees its input in steps of max|x| / 127 of each block."""

    def rounding(block: int) -> Any:
        def round_input(module: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            (x,) = arguments
            blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
            step = blocks.abs().amax(-1, keepdim=True) / 127
            rounded = torch.where(step > 0, torch.round(blocks / step) * step, blocks)
            return (rounded.flatten(-2)[..., : x.shape[-1]],)

        return round_input

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounding(block_of(name)))


@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
@pytest.mark.parametrize("shape", [{}, {"family": "qwen2", "tied": True}], ids=["llama", "qwen2-tied"])
def test_logits_are_those_of_the_decoded_weights(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, target: str, shape: dict[str, Any]
) -> None:
    folder = checkpoint_of(**shape)
    assert megrez_compile(folder, "--target", target, "-o", tmp_path / "b", "--context", 64).code == 0
    session = open_session(open_bundle(tmp_path / "b"), threads=1)
    ours = session.step(np.array([IDS]), np.zeros(1, np.int32), np.arange(24))
    model = decoded_model(folder, tmp_path / "b", target)
    with torch.no_grad():
        exact = model(torch.tensor([IDS])).logits[0].numpy()
        round_inputs(model, lambda name: O_BLOCK[4 if target == "cpu-int4" else 8] if "o_proj" in name else BLOCK)
        rounded = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(ours - exact).max() <= 2 * np.abs(rounded - exact).max()
    # And the weights are the checkpoint's, as near as so many bits allow: logits here are normal, of variance about 1.
    error = np.sqrt(((exact - logits(folder, IDS)) ** 2).mean() / (exact**2).mean())
    assert error < {"cpu-int8": 0.02, "cpu-int4": 0.4}[target]


@pytest.mark.parametrize("target", ["cuda-int8", "cuda-int4"])
@pytest.mark.parametrize("shape", [{}, {"family": "qwen2", "tied": True}], ids=["llama", "qwen2-tied"])
def test_a_gpus_graph_computes_the_decoded_weights_in_float16(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, target: str, shape: dict[str, Any]
) -> None:
    """Its activations are not rounded further: no int8 arithmetic. Two rows of different lengths, in chunks.

    The same graph in float32, by which a GPU is judged, rounds nothing.
    """
    folder = checkpoint_of(**shape)
    options = ("--target", target, "-o", tmp_path / "b", "--context", 64, "--algorithm", "rtn")
    assert megrez_compile(folder, *options, "--fidelity-tokens", 0).code == 0
    bundle = open_bundle(tmp_path / "b")
    model = decoded_model(folder, tmp_path / "b", target)
    for half_or_not, allowed in ((bundle, HALF), (widen(bundle, tmp_path / "wide"), WIDE)):
        session = open_on_cpu(half_or_not, threads=1, slots=2)

        def step(tokens: Any, starts: Any, logits_index: Any, session: Any = session) -> Any:
            return np.array(
                session.step(np.array(tokens), np.array(starts, np.int32), np.array(logits_index, np.int64))
            )

        for row, ids in zip(ragged(step), RAGGED_IDS, strict=True):
            with torch.no_grad():
                exact = model(torch.tensor([ids[: len(row)]])).logits[0].numpy()
            np.testing.assert_allclose(row, exact, rtol=0, atol=allowed)


def test_what_a_cpu_measures_of_a_gpus_bundle_is_called_a_simulation(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, tmp_path: Path
) -> None:
    options = ("--target", "cuda-int8", "-o", tmp_path / "b", "--context", 64, "--fidelity-tokens", 128)
    assert megrez_compile(checkpoint_of(), *options).code == 0
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.engine, manifest.device) == ("ort-cuda", None)
    assert manifest.measured is not None and manifest.measured.of == "simulation"
    assert manifest.measured.fidelity.tokens == 128 and 0 < manifest.measured.fidelity.kl_mean < 0.01
    code, out, err = megrez("run", tmp_path / "b", "hello")
    assert (code, out) == (1, "") and err.startswith("error: this bundle needs onnxruntime-gpu, the onnxruntime 1.")


@pytest.mark.parametrize("arch", ["h100", "native"])
def test_a_bundle_for_every_gpu_is_built_for_none(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, arch: str
) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cuda-fp16", "-o", tmp_path / "b", "--arch", arch)
    assert done.code == 2 and done.err.startswith(
        "error: --arch is for engines that are built for a device, a cuda-fp16 bundle runs on all NVIDIA GPUs of "
        "SM75 and later, through ONNX Runtime: leave it out"
    )
