"""The real model, SmolLM2-135M-Instruct, against transformers in float32: make slow fetches it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.export.trace import trace
from megrez.compile.graph.weights import bind
from megrez.engines.onnx_files import write_onnx
from megrez.runtime import Model, SamplingParams
from megrez.runtime.generate import generate

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0.0)
NEW_TOKENS = 128
PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Write a short poem about the sea.",
    "Explain photosynthesis to a child.",
    "List the first ten prime numbers.",
    "Translate to French: The cat sleeps on the warm roof.",
    "def fibonacci(n):",
    "In 1969, the first people landed on the Moon. What happened next?",
    "Give me three reasons to learn to cook, and a recipe with 250 g of flour.",
)


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=2)
    return model


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory, compile_in_process: Any) -> Iterator[Model]:
    bundle = tmp_path_factory.mktemp("smollm2") / "fp32"
    compile_in_process(smollm2_gguf, "cpu-fp32", bundle, context=512)
    with Model.open(bundle) as opened:
        yield opened


def reference_answer(reference: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    # Without a mask, generate takes every <|im_end|> of the prompt, which is also the padding token, for padding.
    mask = torch.ones_like(ids)
    with torch.no_grad():
        ids = reference.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return list(ids[len(prompt) :].tolist())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids_are_those_of_transformers(model: Model, reference: Any, prompt: str):
    ids = model.encode([{"role": "user", "content": prompt}])
    answer = [step.token for step in generate(model.session, ids, GREEDY, stop_ids=(), max_tokens=NEW_TOKENS)]
    assert len(answer) == NEW_TOKENS
    assert answer == reference_answer(reference, ids)


def test_logits_are_those_of_transformers_to_1e_3(model: Model, reference: Any):
    ids = model.encode(" ".join(PROMPTS))
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    whole = model.session.step(np.array([ids]), np.zeros(1, np.int32), np.arange(len(ids))).copy()
    assert np.abs(whole - expected).max() < 1e-3
    for start, stop in ((0, 50), (50, 51), (51, len(ids))):
        rows = np.arange(stop - start)
        part = model.session.step(np.array([ids[start:stop]]), np.array([start], np.int32), rows)
        assert np.abs(part - expected[start:stop]).max() < 1e-3


def test_the_canonical_graph_agrees_to_1e_4(smollm2_gguf: Path, reference: Any, tmp_path: Path):
    checkpoint = open_checkpoint(str(smollm2_gguf))
    config, capacity = checkpoint.config, 128
    graph = trace(config, capacity)
    bind(graph, checkpoint, capacity)
    write_onnx(graph, tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns that unbound caches are copied
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 40))
    cache = np.full((1, config.num_key_value_heads, capacity, config.head_dim), 9.0, np.float32)
    feeds = {i.name: cache for i in session.get_inputs() if i.name.startswith("past_key_values")}
    feeds |= {"input_ids": ids, "write_indices": np.zeros(1, np.int64), "logits_index": np.arange(40)}
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits[0].numpy()
    assert np.abs(session.run(["logits"], feeds)[0] - expected).max() < 1e-4


def test_int4_from_q4_1_answers_rightly(smollm2_gguf: Path, tmp_path: Path, compile_in_process: Any):
    compile_in_process(smollm2_gguf, "cpu-int4", tmp_path / "int4", context=512)
    with Model.open(tmp_path / "int4") as model:
        answer = model.generate([{"role": "user", "content": PROMPTS[0]}], GREEDY, max_tokens=32)
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
