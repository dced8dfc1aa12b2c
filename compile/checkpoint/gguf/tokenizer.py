"""TextAssets from a .gguf file's metadata: its vocabulary rebuilt as a `tokenizers` file; knows no tensor."""

from typing import TYPE_CHECKING, Any

from megrez.compile.checkpoint.gguf.tokenizer_bpe import LEADS_WITH_BOS, build_bpe
from megrez.compile.checkpoint.gguf.tokenizer_spm import build_spm
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.text_assets import GREEDY, TextFacts, assemble
from megrez.runtime.errors import CheckpointError
from megrez.runtime.manifest import SamplingDefaults

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # GGUF's token types
SAMPLING = "general.sampling."
# Unsupported samplers, with the values that disable them; other keys are parameters of these or their order.
OFF = {"xtc_probability": 0, "mirostat": 0}
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf_text(metadata: dict[str, Any], *, vocab_size: int, source: str) -> TextAssets | None:
    """None for a file without vocabulary; CheckpointError, naming `source`, for an unsupported tokenizer."""
    facts = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if facts.get("model", "none") == "none":
        return None
    tokenizer = _build(facts, source)
    tokenizer.add_special_tokens(_added(facts, (UNKNOWN, CONTROL), special=True))
    tokenizer.add_tokens(_added(facts, (USER_DEFINED,), special=False))
    return assemble(tokenizer.to_str().encode(), _facts(metadata, facts), vocab_size=vocab_size)


def _build(facts: dict[str, Any], source: str) -> "Tokenizer":
    tokens = facts.get("tokens")
    if not tokens:
        raise CheckpointError(f"{source} has a tokenizer without tokens: download it again")
    kinds = _kinds(facts)
    if facts["model"] == "gpt2":
        return build_bpe(tokens, facts.get("merges", []), pre=facts.get("pre", ""), source=source)
    if facts["model"] == "llama":
        return build_spm(
            tokens,
            facts.get("scores", [0.0] * len(tokens)),
            mergeable=[kind == NORMAL for kind in kinds],
            unknown=next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None),
            space_prefix=bool(facts.get("add_space_prefix", True)),
        )
    raise CheckpointError(f"{source} has a tokenizer of model {facts['model']!r}: gpt2 and llama are supported")


def _kinds(facts: dict[str, Any]) -> list[int]:
    kinds = list(facts.get("token_type", []))
    return kinds + [NORMAL] * (len(facts["tokens"]) - len(kinds))


def _added(facts: dict[str, Any], token_types: tuple[int, ...], *, special: bool) -> list["AddedToken"]:
    from tokenizers import AddedToken

    pairs = zip(facts["tokens"], _kinds(facts), strict=True)
    return [AddedToken(token, normalized=False, special=special) for token, kind in pairs if kind in token_types]


def _facts(metadata: dict[str, Any], facts: dict[str, Any]) -> TextFacts:
    def token(key: str) -> str | None:
        at = facts.get(key)
        return facts["tokens"][at] if isinstance(at, int) and 0 <= at < len(facts["tokens"]) else None

    by_default = facts["model"] == "llama" or facts.get("pre") in LEADS_WITH_BOS
    return TextFacts(
        chat_template=metadata.get("tokenizer.chat_template"),
        bos_token=token("bos_token_id"),
        eos_token=token("eos_token_id"),
        pad_token=token("padding_token_id"),
        stop_tokens=(),
        stop_ids=tuple(facts[key] for key in STOP_KEYS if key in facts),
        add_bos=bool(facts.get("add_bos_token", by_default)),
        sampling=_sampling(metadata),
        ignored=_ignored(metadata),
    )


def _sampling(metadata: dict[str, Any]) -> SamplingDefaults:
    """The file's recommendation; greedy where it has no valid one."""
    if f"{SAMPLING}temp" not in metadata:
        return GREEDY
    found = SamplingDefaults(
        temperature=round(float(metadata[f"{SAMPLING}temp"]), 6),
        top_k=max(int(metadata.get(f"{SAMPLING}top_k", 0)), 0),
        top_p=round(float(metadata.get(f"{SAMPLING}top_p", 1.0)), 6),
        min_p=round(float(metadata.get(f"{SAMPLING}min_p", 0.0)), 6),
        repetition_penalty=round(float(metadata.get(f"{SAMPLING}penalty_repeat", 1.0)), 6),
    )
    return GREEDY if found.faults() else found


def _ignored(metadata: dict[str, Any]) -> tuple[str, ...]:
    found = {f"{SAMPLING}{name}": metadata.get(f"{SAMPLING}{name}", off) for name, off in OFF.items()}
    return tuple(f"{key} {value:g}" for key, value in found.items() if value != OFF[key.removeprefix(SAMPLING)])
