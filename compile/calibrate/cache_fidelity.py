"""What a KV cache's format costs: a bundle against the same graph and weights with a float32 cache."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.compile.bundle.describe import BYTES
from megrez.compile.calibrate.text import TextRequest
from megrez.compile.calibrate.text_records import Ids, Tokenizer, default_name, read_default, read_file
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.graph.passes.cache_format import CacheFormat
from megrez.compile.report import Report
from megrez.engines.onnx_files import DATA_FILE
from megrez.engines.ort import MODEL_FILE
from megrez.runtime.bundle import Bundle
from megrez.runtime.engines import open_session
from megrez.runtime.manifest import Architecture, CacheFidelity, KvCache

# Tokens of a window, from an empty cache; larger models are measured on the first only.
CONTEXTS = (512, 4096, 8192)
LARGE = 1_000_000_000
# The least number of tokens that a context length is measured on.
TOKENS = 2048


def measure_cache(bundle: Bundle, text: TextAssets, request: TextRequest, report: Report) -> tuple[CacheFidelity, ...]:
    """At each of CONTEXTS that the bundle's context and the text allow, or at the bundle's context if it is shorter.

    The text is read from its start; a format is not fitted to any text.
    """
    contexts = contexts_of(bundle)
    ids, source = _read(text, request, max(*contexts, TOKENS))
    found = []
    with _float32_cache(bundle) as reference:
        for context in contexts:
            tokens = ids[: max(context, TOKENS // context * context)]
            if len(tokens) < context:
                break
            report.stage(f"measuring the KV cache in {bundle.manifest.kv_cache.dtype} on {len(tokens)} tokens")
            with (
                closing(open_session(bundle, threads=None, capacity=context)) as session,
                closing(open_session(reference, threads=None, capacity=context)) as truth,
            ):
                fidelity = measure_fidelity(session, truth, tokens, window=context)
            found.append(CacheFidelity(context=context, text=source, fidelity=fidelity))
    return tuple(found)


def contexts_of(bundle: Bundle) -> tuple[int, ...]:
    longest = bundle.manifest.context_length
    contexts = tuple(context for context in CONTEXTS if context <= longest) or (longest,)
    return contexts[:1] if _parameters(bundle.manifest.architecture) > LARGE else contexts


def _parameters(shape: Architecture) -> int:
    """Those of the layers and of one table of the vocabulary."""
    return shape.num_hidden_layers * shape.layer_weights + shape.vocab_size * shape.hidden_size


def _read(assets: TextAssets, request: TextRequest, count: int) -> tuple[Ids, str]:
    """Up to `count` tokens, and the text's name."""
    tokenizer, parts, total = Tokenizer(assets), [np.empty(0, np.int64)], 0
    for piece in read_default(tokenizer) if request.path is None else read_file(request.path, tokenizer):
        parts.append(piece)
        total += len(piece)
        if total >= count:
            break
    return np.concatenate(parts)[:count], default_name() if request.path is None else request.path.name


@contextlib.contextmanager
def _float32_cache(bundle: Bundle) -> Iterator[Bundle]:
    """The same bundle with a float32 cache, in a temporary folder beside it; the weights are linked."""
    model = ir.load(bundle.path / MODEL_FILE)
    CacheFormat("float32")(model)
    shape = bundle.manifest.architecture
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * BYTES["float32"]
    cache = KvCache(dtype="float32", bytes_per_token=per_token)
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".float32-cache-") as name:
        folder = Path(name)
        weights = DATA_FILE.format(MODEL_FILE)
        if (bundle.path / weights).is_file():
            _link(bundle.path / weights, folder / weights)
        ir.save(model, folder / MODEL_FILE)
        yield Bundle(path=folder, manifest=replace(bundle.manifest, kv_cache=cache))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy(source, target)
