"""A Hugging Face folder's tokenizer, chat template, stop tokens and sampling; knows no weights."""

from pathlib import Path
from typing import Any

from megrez.compile.checkpoint.added_tokens import add_stated_tokens, prefers_special_map
from megrez.compile.checkpoint.generation import GENERATION, ignored_keys, read_sampling
from megrez.compile.checkpoint.json_file import read_object_if_there
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text_assets import TextFacts, assemble, parse_tokenizer
from megrez.runtime.errors import CheckpointError

TOKENIZER = "tokenizer.json"
OLDER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


def read_text_assets(folder: Path, *, vocab_size: int) -> TextAssets | None:
    """None where the folder has no tokenizer; CheckpointError where it has one that cannot be used."""
    if not (folder / TOKENIZER).is_file():
        older = [name for name in OLDER_TOKENIZERS if (folder / name).is_file()]
        if older:
            raise CheckpointError(
                f"{folder} has a tokenizer only as {older[0]}, and {TOKENIZER} is needed: make it with transformers' "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return None
    tokenizer = read_object_if_there(folder / "tokenizer_config.json")
    special = read_object_if_there(folder / "special_tokens_map.json")
    if tokenizer.get("split_special_tokens"):
        raise CheckpointError(
            "tokenizer_config.json: split_special_tokens is on, and the runtime always recognises special tokens: "
            "turn it off, or take another tokenizer"
        )
    parsed = parse_tokenizer((folder / TOKENIZER).read_bytes())
    more = add_stated_tokens(parsed, tokenizer, special, read_object_if_there(folder / "added_tokens.json"))
    stored = parsed.to_str().encode() if more else (folder / TOKENIZER).read_bytes()
    return assemble(stored, _facts(folder, tokenizer, special), vocab_size=vocab_size)


def _facts(folder: Path, tokenizer: dict[str, Any], special: dict[str, Any]) -> TextFacts:
    generation = read_object_if_there(folder / GENERATION)
    config = read_object_if_there(folder / "config.json")

    first, second = (special, tokenizer) if prefers_special_map(tokenizer) else (tokenizer, special)

    def token(key: str) -> str | None:
        return _spelling(first.get(key)) or _spelling(second.get(key))

    stop_tokens = (_spelling(tokenizer.get("eos_token")), _spelling(special.get("eos_token")))
    return TextFacts(
        chat_template=_chat_template(folder, tokenizer),
        bos_token=token("bos_token"),
        eos_token=token("eos_token"),
        pad_token=token("pad_token"),
        stop_tokens=tuple(name for name in stop_tokens if name is not None),
        stop_ids=(*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))),
        add_bos=None,  # beside a tokenizer.json, transformers 5 takes no add_bos_token: the post-processor decides
        sampling=read_sampling(generation),
        ignored=ignored_keys(generation),
    )


def _spelling(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _ids(value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(i for i in found if type(i) is int)


def _chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{jinja} is not UTF-8 text ({error}): convert it") from error
    others = sorted(path.stem for path in (folder / "additional_chat_templates").glob("*.jinja"))
    if others:
        raise CheckpointError(f"no chat template is named 'default', found {others}: rename one to chat_template.jinja")
    # transformers' tokenizers leave chat_template.json to the processors of models that see or hear.
    found = tokenizer.get("chat_template") or read_object_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
        if found is None and named:
            raise CheckpointError(f"no chat template is named 'default', found {sorted(map(str, named))}: rename one")
    return found if isinstance(found, str) else None
