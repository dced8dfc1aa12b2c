"""Tiny tokenizers and bundles made in memory, and an engine that says what it is told to."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from megrez.runtime.batch import Batch
from megrez.runtime.manifest import (
    SCHEMA_VERSION,
    Architecture,
    File,
    KvCache,
    Manifest,
    Provenance,
    SamplingDefaults,
    Tokens,
)

SPECIALS = ["<|eos|>", "<|role_start|>", "<|role_end|>", "<|turn_end|>", "<|function_start|>", "<|function_end|>"]
MEGREZ_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|role_start|>system<|role_end|>"
    "你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。<|turn_end|>' }}"
    "{% endif %}{{ '<|role_start|>' + message['role'] + '<|role_end|>' + message['content'] + '<|turn_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|role_start|>assistant<|role_end|>' }}{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Every byte is a token (ids 0-255), then a few merges, then SPECIALS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
    vocab = {word: at for at, word in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama-2's form: ▁ for spaces, <0xNN> for what the vocabulary lacks, a leading space that decoding strips."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "."]
    merges = [("▁", "a"), ("▁", "b")]
    vocab = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<s>", "</s>")])
    return tokenizer


@pytest.fixture
def byte_level() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture
def byte_fallback() -> Tokenizer:
    return byte_fallback_tokenizer()


def plain_manifest() -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        target="cpu-fp32",
        engine="fake",
        context_length=64,
        architecture=Architecture(
            model_type="llama",
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            vocab_size=267,
        ),
        kv_cache=KvCache(dtype="float32", bytes_per_token=32),
        tokens=Tokens(bos=None, pad=None, stop=(264, 261), add_bos=False),
        sampling=SamplingDefaults(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0),
        provenance=Provenance(
            source="tiny", weights="dummy", quantization=None, calibration=None, tools={"torch": "2"}
        ),
        measured=None,
        device=None,
        files=(),
    )


@pytest.fixture
def manifest() -> Manifest:
    return plain_manifest()


def write_bundle(
    folder: Path, *, manifest: Manifest, tokenizer: Tokenizer | None = None, template: str | None = None
) -> Path:
    """A bundle on disk whose manifest lists what it holds."""
    contents = {
        "tokenizer.json": tokenizer.to_str() if tokenizer else None,
        "chat_template.jinja": template,
        "model.onnx": "weights",
    }
    folder.mkdir()
    files = []
    for name, text in contents.items():
        if text is not None:
            data = text.encode()
            (folder / name).write_bytes(data)
            files.append(File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    listed = dataclasses.replace(manifest, files=tuple(files))
    (folder / "manifest.json").write_text(listed.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(
        name: str = "bundle",
        *,
        manifest: Manifest | None = None,
        tokenizer: Tokenizer | None = None,
        template: str | None = None,
    ) -> Path:
        return write_bundle(
            tmp_path / name, manifest=manifest or plain_manifest(), tokenizer=tokenizer, template=template
        )

    return make


@pytest.fixture(scope="session")
def ort_bundle(
    checkpoint_of: Callable[..., Path],
    compile_in_process: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """(checkpoint, its bundle for cpu-fp32 with a context of 1,024 tokens). Read only."""
    from tests.traces import traced

    checkpoint, bundle = checkpoint_of(positions=1024), tmp_path_factory.mktemp("ort") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megrez.compile.graph.export.trace.trace", traced)
        compile_in_process(checkpoint, "cpu-fp32", bundle, context=1024)
    return checkpoint, bundle


class ScriptedSession:
    """Answers every prompt with the same tokens, and notes what it was fed: (tokens, length, rows) per step."""

    def __init__(self, script: Sequence[int], *, vocab_size: int = 267, capacity: int = 64) -> None:
        self.script, self.vocab_size, self.capacity, self.slots = list(script), vocab_size, capacity, 1
        self.steps: list[tuple[list[int], int, list[int]]] = []
        self.said = 0
        self.closed = False

    def step(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        logits_index: np.ndarray,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ) -> np.ndarray:
        batch = Batch.of(tokens, starts, logits_index, slots, counts, max_slots=1, capacity=self.capacity)
        self.steps.append((batch.tokens.tolist(), int(batch.starts[0]), batch.logits_index.tolist()))
        if len(batch.tokens) > 1:
            self.said = 0
        logits = np.zeros((len(batch.logits_index), self.vocab_size), np.float32)
        if len(logits):
            logits[0, self.script[self.said % len(self.script)]] = 9.0
            self.said += 1
        return logits

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scripted() -> type[ScriptedSession]:
    return ScriptedSession


@pytest.fixture
def megrez_template() -> str:
    return MEGREZ_TEMPLATE
