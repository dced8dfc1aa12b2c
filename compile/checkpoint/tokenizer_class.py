"""The class that transformers 5's AutoTokenizer chooses for a folder, and its tokenizer where tokenizer.json differs.

Some classes (LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer, …) use only the vocabulary, the merges and the
post-processor of tokenizer.json, and replace its normaliser, pre-tokenizer, decoder and special tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megrez.runtime.errors import CheckpointError, MissingExtraError, first_line

if TYPE_CHECKING:
    from transformers import TokenizersBackend

# Classes, without the suffix "Fast", that use tokenizer.json unchanged.
FILE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# Families with a default class in AutoTokenizer, and the one whose stated class AutoTokenizer ignores.
OWN_CLASS, ALWAYS_OWN_CLASS = ("qwen2", "qwen3"), "qwen2"
# Keys of tokenizer_config.json that make AutoTokenizer use another file, class or pattern.
CHANGING_KEYS = ("auto_map", "fast_tokenizer_files", "fix_mistral_regex")


def takes_the_file_as_it_is(
    tokenizer_json: bytes, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """Whether AutoTokenizer's tokenizer is `tokenizer_json`; False also where only loading it decides.

    tokenizer_config, config: of tokenizer_config.json and config.json.
    """
    family = config.get("model_type")
    if family == ALWAYS_OWN_CLASS or any(tokenizer_config.get(key) for key in CHANGING_KEYS):
        return False
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if family == "mistral":
        return True
    if named is None:
        return family not in OWN_CLASS
    name = str(named).removesuffix("Fast")
    return name in FILE_CLASSES or (name == "LlamaTokenizer" and b'"ByteLevel"' in tokenizer_json)


def load_with_transformers(folder: Path) -> "TokenizersBackend":
    """AutoTokenizer's tokenizer of `folder`: no network, no code from the folder.

    Raises MissingExtraError without transformers, CheckpointError where it cannot load the tokenizer or where that
    cannot be saved as a tokenizer.json.
    """
    try:
        from transformers import AutoTokenizer, TokenizersBackend
    except ImportError as error:
        raise MissingExtraError(
            needed_for="reading this checkpoint's tokenizer", library="transformers", extra="export"
        ) from error
    try:
        found = AutoTokenizer.from_pretrained(folder.resolve(), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes transformers raise
        raise CheckpointError(
            f"transformers cannot load the tokenizer ({type(error).__name__}: {first_line(error)}): correct "
            "tokenizer_config.json (code that its auto_map names is never run), or set "
            '"tokenizer_class": "PreTrainedTokenizerFast" to use tokenizer.json unchanged'
        ) from error
    if not isinstance(found, TokenizersBackend):
        raise CheckpointError(
            f"tokenizer_config.json names {type(found).__name__}, which the tokenizers library cannot run: "
            "use a checkpoint with a tokenizer.json"
        )
    return found
