"""Fidelity of a checkpoint quantised by nvidia-modelopt: run by benchmarks/calibration.py with the peers' Python.

python peer_modelopt.py --model FOLDER --tokens FILE.npy --config INT8_SMOOTHQUANT_CFG --json FILE

FILE.npy has the calibration tokens (--skip of them) and then those to measure on, both read in windows that each start
at position 0. modelopt's quantisation is simulated in torch. Measured like calibration/reference/fidelity.py, which is
not imported because the peers' Python need not have it.
"""

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from transformers import AutoModelForCausalLM

Figures = dict[str, Any]
VERSIONS = "nvidia-modelopt", "torch", "transformers", "numpy"
# Positions compared at a time, in float64.
STEP_POSITIONS = 64


def load(folder: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def quantise(model: torch.nn.Module, config: str, tokens: torch.Tensor, window: int) -> torch.nn.Module:
    """`model` itself, its quantizers calibrated on `tokens` [N]."""

    def forward(wrapped: torch.nn.Module) -> None:
        for ids in tokens.split(window):
            wrapped(ids[None], use_cache=False, logits_to_keep=1)

    return mtq.quantize(model, getattr(mtq, config), forward)


def quantizers(model: torch.nn.Module) -> Figures:
    """The enabled quantizers, counted over layers, and the widest range of each kind of input."""
    kinds: collections.Counter[str] = collections.Counter()
    ranges: dict[str, float] = {}
    for name, module in model.named_modules():
        if not isinstance(module, TensorQuantizer) or not module.is_enabled:
            continue
        kind = ".".join(name.split(".")[-2:])
        amax = getattr(module, "amax", None)
        shape = "dynamic" if amax is None else f"amax {list(amax.shape)}"
        smooth = ", channels scaled before" if getattr(module, "pre_quant_scale", None) is not None else ""
        kinds[f"{kind}: {module.num_bits} bits, axis {module.axis}, blocks {module.block_sizes}, {shape}{smooth}"] += 1
        if amax is not None and kind.endswith("input_quantizer"):
            ranges[kind] = max(ranges.get(kind, 0.0), float(amax.max()))
    return {"enabled": dict(kinds), "widest_input": ranges}


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    x = logits.numpy().astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def compare(
    model: torch.nn.Module, reference: torch.nn.Module, ids: torch.Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """KL, agreement [n] and both losses of consecutive positions of a window; its last position has no loss."""
    logits, truths = (one(ids[None], use_cache=False).logits[0] for one in (model, reference))
    targets = ids.numpy()
    for start in range(0, len(ids), STEP_POSITIONS):
        found, truth = (log_softmax(one[start : start + STEP_POSITIONS]) for one in (logits, truths))
        next_tokens = targets[start + 1 : start + 1 + STEP_POSITIONS]
        positions = np.arange(len(next_tokens))
        kl = (np.exp(truth) * (truth - found)).sum(axis=-1)
        yield (
            kl,
            truth.argmax(axis=-1) == found.argmax(axis=-1),
            -found[positions, next_tokens],
            -truth[positions, next_tokens],
        )


def measure(model: torch.nn.Module, reference: torch.nn.Module, tokens: torch.Tensor, window: int) -> Figures:
    parts = [part for ids in tokens.split(window) for part in compare(model, reference, ids)]
    kl, agree, loss, reference_loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        "perplexity": float(np.exp(loss.mean())),
        "reference_perplexity": float(np.exp(reference_loss.mean())),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.percentile(kl, 99)),
        "top1_agreement": float(agree.mean()),
        "tokens": len(kl),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="Token ids, [N] int64, NumPy's format.")
    parser.add_argument("--config", required=True, help="A constant of modelopt.torch.quantization.")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=16384, help="How many of the tokens only calibrate.")
    parser.add_argument("--window", type=int, default=512)
    args = parser.parse_args()
    tokens = torch.from_numpy(np.load(args.tokens, allow_pickle=False))
    start = time.perf_counter()
    with torch.no_grad():
        model = quantise(load(args.model), args.config, tokens[: args.skip], args.window)
        calibrated = time.perf_counter()
        found = quantizers(model)
        print(json.dumps(found, indent=2), file=sys.stderr, flush=True)
        mtq.fold_weight(model)  # same logits bit for bit, without quantising every weight again in every window
        figures = measure(model, load(args.model), tokens[args.skip :], args.window)
    figures |= {
        "config": args.config,
        "calibration_tokens": args.skip,
        "window": args.window,
        "calibration_s": calibrated - start,
        "evaluation_s": time.perf_counter() - calibrated,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in VERSIONS},
        "quantizers": found,
    }
    args.json.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
