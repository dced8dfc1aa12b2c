"""What transformers computes for a checkpoint, eagerly and in float32; knows nothing of the product."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


@functools.cache
def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True, **options
    ).eval()


def logits(folder: Path, ids: list[int], **options: Any) -> NDArray[np.float32]:
    """Of every position: [len(ids), vocab_size]. options: of from_pretrained, as gguf_file."""
    with torch.no_grad():
        found: NDArray[np.float32] = load(folder, **options)(torch.tensor([ids])).logits[0].numpy()
    return found


def greedy(folder: Path, prompt: list[int], count: int, **options: Any) -> list[int]:
    """transformers.generate's answer, the stop token included."""
    with torch.no_grad():
        ids = torch.tensor([prompt])
        # Without a mask, generate leaves out whatever token of the prompt is the padding token.
        mask = torch.ones_like(ids)
        out = load(folder, **options).generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    top = x.max(axis=-1, keepdims=True)
    return np.asarray(x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))
