"""A Hugging Face folder's tokenizer, chat template, stop tokens and sampling; knows no weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megrez.compile.checkpoint.added_tokens import NAMED, add_stated_tokens, merged
from megrez.compile.checkpoint.generation import GENERATION, ignored_keys, read_sampling
from megrez.compile.checkpoint.json_file import read_object_if_there
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text_assets import TextFacts, assemble, parse_tokenizer
from megrez.compile.checkpoint.tokenizer_checks import check_template_variables, check_tokens_have_embeddings, cleans_up
from megrez.compile.checkpoint.tokenizer_class import load_with_transformers, takes_the_file_as_it_is
from megrez.runtime.errors import CheckpointError

TOKENIZER = "tokenizer.json"
TEKKEN = "tekken.json"  # Mistral's own format
OLDER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


def read_text_assets(folder: Path, *, vocab_size: int) -> TextAssets | None:
    """None where the folder has no tokenizer; CheckpointError where it has one that cannot be used."""
    if not (folder / TOKENIZER).is_file():
        _refuse_other_formats(folder)
        return None
    stated = _Stated(
        tokenizer=read_object_if_there(folder / "tokenizer_config.json"),
        special=read_object_if_there(folder / "special_tokens_map.json"),
        config=read_object_if_there(folder / "config.json"),
        generation=read_object_if_there(folder / GENERATION),
    )
    if stated.tokenizer.get("split_special_tokens"):
        raise CheckpointError(
            "tokenizer_config.json: split_special_tokens is on, and the runtime always recognises special tokens: "
            "set it to false, or use another tokenizer"
        )
    tokenizer_json, named = _tokenizer(folder, stated)
    tokenizer = parse_tokenizer(tokenizer_json)
    assets = assemble(tokenizer_json, _facts(folder, stated, named), vocab_size=vocab_size)
    if cleans_up(tokenizer, stated.tokenizer):
        assets = replace(assets, ignored=(*assets.ignored, "clean_up_tokenization_spaces True"))
    check_tokens_have_embeddings(tokenizer, vocab_size, padding=named.get("pad_token"))
    check_template_variables(assets, tokenizer, named)
    return assets


def _refuse_other_formats(folder: Path) -> None:
    """Raise CheckpointError for a tokenizer without a tokenizer.json, with the conversion by transformers."""
    found = next((name for name in (TEKKEN, *OLDER_TOKENIZERS) if (folder / name).is_file()), None)
    if found is None:
        return
    remedy = (
        f"from transformers.integrations.mistral import convert_tekken_tokenizer; "
        f"convert_tekken_tokenizer({str(folder / TEKKEN)!r}).save_pretrained({str(folder)!r})"
        if found == TEKKEN
        else f"from transformers import AutoTokenizer; "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )
    raise CheckpointError(
        f"{folder} has a tokenizer only as {found}, and {TOKENIZER} is needed: convert it in Python with  {remedy}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    """The JSON objects of tokenizer_config, special_tokens_map, config and generation_config; empty where absent."""

    tokenizer: dict[str, Any]
    special: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any]


def _tokenizer(folder: Path, stated: _Stated) -> tuple[bytes, dict[str, str]]:
    """A tokenizer.json that gives transformers' token ids, and its named tokens (bos_token, …)."""
    stored = (folder / TOKENIZER).read_bytes()
    parsed = parse_tokenizer(stored)
    if not takes_the_file_as_it_is(stored, stated.tokenizer, stated.config):
        theirs = load_with_transformers(folder)
        return theirs.backend_tokenizer.to_str().encode(), dict(theirs.special_tokens_map)
    more = add_stated_tokens(
        parsed, stated.tokenizer, stated.special, read_object_if_there(folder / "added_tokens.json")
    )
    entries = merged(stated.tokenizer, stated.special)
    named = {name: token for name in NAMED if (token := _content(entries.get(name))) is not None}
    return parsed.to_str().encode() if more else stored, named


def _facts(folder: Path, stated: _Stated, named: dict[str, str]) -> TextFacts:
    # Without generation_config.json, transformers 5 reads the generation fields of config.json.
    recommended = (stated.generation, GENERATION) if (folder / GENERATION).is_file() else (stated.config, "config.json")
    ends = (named.get("eos_token"), *(_content(file.get("eos_token")) for file in (stated.tokenizer, stated.special)))
    return TextFacts(
        chat_template=_chat_template(folder, stated.tokenizer),
        bos_token=named.get("bos_token"),
        eos_token=named.get("eos_token"),
        pad_token=named.get("pad_token"),
        stop_tokens=tuple(name for name in ends if name is not None),
        stop_ids=(*_ids(stated.generation.get("eos_token_id")), *_ids(stated.config.get("eos_token_id"))),
        add_bos=None,  # beside a tokenizer.json, transformers 5 takes no add_bos_token: the post-processor decides
        sampling=read_sampling(recommended[0], source=recommended[1]),
        ignored=ignored_keys(recommended[0]),
    )


def _content(token: Any) -> str | None:
    """The text of a token in tokenizer_config.json: a string, or an object with its content."""
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
    # transformers' tokenizers leave chat_template.json to the processors of multimodal models.
    found = tokenizer.get("chat_template") or read_object_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
        if found is None and named:
            raise CheckpointError(f"no chat template is named 'default', found {sorted(map(str, named))}: rename one")
    return found if isinstance(found, str) else None
