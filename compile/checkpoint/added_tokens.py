"""Tokens in files other than tokenizer.json, added to it in the order and with the flags of transformers 5.

Ids follow from the order alone: a token of the vocabulary keeps its id, a new one gets the next free one, whatever id a
file states for it. Knows no folder.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from megrez.compile.checkpoint.faults import raise_faults
from megrez.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
DECODER, EXTRA, OLDER_EXTRA = "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"


def add_stated_tokens(
    tokenizer: "Tokenizer", config: Mapping[str, Any], special_map: Mapping[str, Any], added: Mapping[str, Any]
) -> bool:
    """Add to `tokenizer` what tokenizer_config.json, special_tokens_map.json and added_tokens.json name in addition.

    Returns whether anything changed. Raises CheckpointError for an entry that is not a token.
    """
    stated = merged(config, special_map)
    known = list(tokenizer.get_added_tokens_decoder().values())
    by_id = _by_id(stated, added)
    named, extra = _specials(stated, {token.content: token for token in (*by_id, *known)})
    written = {repr(token) for token in known}
    new = [token for token in by_id if repr(token) not in written]
    contents = {token.content for token in (*known, *new)}
    for token in (*named, *extra):
        if token.content not in contents:
            contents.add(token.content)
            new.append(token)
    special = {token.content for token in named}
    for token in new:
        token.special = token.special or token.content in special
    before = tokenizer.to_str() if new else ""
    tokenizer.add_tokens(new)
    return bool(new) and tokenizer.to_str() != before


def merged(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """Both files: without added_tokens_decoder, special_tokens_map.json is read too and takes precedence."""
    stated = dict(config)
    if OLDER_EXTRA in stated and not stated.get(EXTRA):
        stated[EXTRA] = stated.pop(OLDER_EXTRA)
    if DECODER in config:
        return stated
    for key, value in special_map.items():
        joined = isinstance(value, list) and key == EXTRA and isinstance(stated.get(EXTRA, []), list)
        stated[key] = [*(stated.get(EXTRA) or []), *value] if joined else value
    return stated


def _by_id(stated: Mapping[str, Any], added: Mapping[str, Any]) -> "list[AddedToken]":
    """The tokens for which a file states ids, in the order of the ids."""
    if DECODER in stated:
        entries = stated[DECODER]
        if not isinstance(entries, dict) or not all(str(i).isdecimal() for i in entries):
            raise CheckpointError(f"tokenizer_config.json: {DECODER} is not an object of ids and tokens: repair it")
        return [_token(entries[i], DECODER, special=False) for i in sorted(entries, key=int)]
    raise_faults(
        "added_tokens.json",
        [f"{token!r} has the id {i!r}" for token, i in added.items() if type(i) is not int],
        "repair it or remove it",
    )
    listed = stated.get(EXTRA) or stated.get(OLDER_EXTRA) or []
    names = [stated[key] for key in NAMED if stated.get(key)] + (listed if isinstance(listed, list) else [])
    special = {_content(name) for name in names}
    return [
        _token(token, "added_tokens.json", special=token in special) for token in sorted(added, key=added.__getitem__)
    ]


def _specials(
    stated: Mapping[str, Any], known: "Mapping[str, AddedToken]"
) -> "tuple[list[AddedToken], list[AddedToken]]":
    """Those with a name (bos_token, …, image_token, …), and the others."""
    extra = stated.get(EXTRA, stated.get(OLDER_EXTRA)) or []
    others = {key: stated[key] for key in stated if key.endswith("_token") and key not in NAMED}
    named = {key: stated.get(key) for key in NAMED}
    named |= {key: value for key, value in others.items() if isinstance(value, str | dict)}
    if isinstance(extra, dict):
        named, extra = named | extra, []
    if not isinstance(extra, list):
        raise CheckpointError(f"tokenizer_config.json: {EXTRA} is neither a list nor an object: repair it")
    return _tokens(named.items(), known), _tokens(((EXTRA, token) for token in extra), known)


def _tokens(pairs: Iterable[tuple[str, Any]], known: "Mapping[str, AddedToken]") -> "list[AddedToken]":
    found = [(key, value) for key, value in pairs if value is not None and _content(value) != ""]
    return [known.get(_content(value) or "", _token(value, key, special=True)) for key, value in found]


def _content(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _token(value: Any, key: str, *, special: bool) -> "AddedToken":
    """A string, or an object with content and flags, where normalized is off for special tokens by default."""
    from tokenizers import AddedToken

    content = _content(value)
    stated = {flag: value[flag] for flag in FLAGS if flag in value} if isinstance(value, dict) else {}
    if content is None or not all(isinstance(flag, bool) for flag in stated.values()):
        raise CheckpointError(
            f"the tokenizer's files state {key} as something that is not a token: repair tokenizer_config.json"
        )
    return AddedToken(content, **{"special": special, **stated})
