"""The class that transformers 5's AutoTokenizer takes for a folder, and its tokenizer where that is not the file's.

Some classes (LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer, …) take only the vocabulary, the merges and the
post-processor of tokenizer.json and have a normaliser, pre-tokenizer, decoder and special tokens of their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megrez.runtime.errors import CheckpointError, MissingExtraError, first_line

if TYPE_CHECKING:
    from transformers import TokenizersBackend

# Classes, without "Fast", that take tokenizer.json as it is.
FILE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# Families for which AutoTokenizer has a class that it takes where none is named, and one whose stated class it ignores.
OWN_CLASS, ALWAYS_OWN_CLASS = ("qwen2", "qwen3"), "qwen2"
# Keys of tokenizer_config.json that make AutoTokenizer take another file, class or pattern.
CHANGING_KEYS = ("auto_map", "fast_tokenizer_files", "fix_mistral_regex")


def takes_the_file_as_it_is(
    tokenizer_json: bytes, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """Whether AutoTokenizer's tokenizer is `tokenizer_json`; False also where only transformers can tell.

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

    Raises MissingExtraError without transformers, CheckpointError where it cannot load the tokenizer or has one that
    cannot be written as a tokenizer.json.
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
            f"transformers cannot load the tokenizer ({type(error).__name__}: {first_line(error)}): mend "
            "tokenizer_config.json (code that its auto_map names is never run), or state "
            '"tokenizer_class": "PreTrainedTokenizerFast" where tokenizer.json alone is right'
        ) from error
    if not isinstance(found, TokenizersBackend):
        raise CheckpointError(
            f"tokenizer_config.json names {type(found).__name__}, which is no tokenizer of the tokenizers library: "
            "the runtime cannot run it"
        )
    return found
