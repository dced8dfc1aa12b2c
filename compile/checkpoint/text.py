"""How a Hugging Face folder's model reads and writes text: tokenizer, template, stop tokens, sampling; no weights."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from megrez.compile.checkpoint.json_file import read_object_if_there
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text_assets import GREEDY, TextFacts, assemble
from megrez.runtime.errors import CheckpointError
from megrez.runtime.manifest import SamplingDefaults

TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
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
    return assemble((folder / TOKENIZER).read_bytes(), _facts(folder), vocab_size=vocab_size)


def _facts(folder: Path) -> TextFacts:
    tokenizer = read_object_if_there(folder / "tokenizer_config.json")
    special = read_object_if_there(folder / "special_tokens_map.json")
    generation = read_object_if_there(folder / GENERATION)
    config = read_object_if_there(folder / "config.json")

    def token(key: str) -> str | None:
        return _spelling(tokenizer.get(key)) or _spelling(special.get(key))

    stop_tokens = (_spelling(tokenizer.get("eos_token")), _spelling(special.get("eos_token")))
    add_bos = tokenizer.get("add_bos_token")
    return TextFacts(
        chat_template=_chat_template(folder, tokenizer),
        bos_token=token("bos_token"),
        eos_token=token("eos_token"),
        pad_token=token("pad_token"),
        stop_tokens=tuple(name for name in stop_tokens if name is not None),
        stop_ids=(*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        sampling=read_sampling(generation),
    )


def read_sampling(generation: dict[str, Any]) -> SamplingDefaults:
    """What generation_config.json recommends, read as transformers' generate reads it.

    Without do_sample generate is greedy whatever the temperature says, and so is this; the repetition penalty holds
    either way. Keys left out have generate's own defaults; a top_p of 0 leaves the likeliest token, as it does there.
    Raises CheckpointError for what is no number or can sample nothing.
    """
    penalty = _number(generation, "repetition_penalty", 1.0) or 1.0
    if generation.get("do_sample") is not True:
        return _usable(replace(GREEDY, repetition_penalty=penalty))
    top_k, top_p = max(int(_number(generation, "top_k", 50)), 0), _number(generation, "top_p", 1.0)
    found = SamplingDefaults(
        temperature=_number(generation, "temperature", 1.0),
        top_k=top_k if top_p else 1,
        top_p=top_p or 1.0,
        repetition_penalty=penalty,
    )
    return _usable(found)


def _number(generation: dict[str, Any], key: str, default: float) -> float:
    value = generation.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{GENERATION}: {key} is {value!r}, not a number: mend it or remove it")
    return float(value)


def _usable(found: SamplingDefaults) -> SamplingDefaults:
    if faults := found.faults():
        raise CheckpointError(f"{GENERATION}: {', '.join(faults)}, which samples nothing: mend it or remove it")
    return found


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
            raise CheckpointError(f"{jinja} is not UTF-8 text ({error}): save it as such") from error
    found = read_object_if_there(folder / "chat_template.json").get("chat_template") or tokenizer.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
        if found is None and named:
            raise CheckpointError(f"no chat template is named 'default', found {sorted(map(str, named))}: rename one")
    return found if isinstance(found, str) else None
