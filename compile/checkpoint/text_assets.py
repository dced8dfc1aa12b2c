"""TextAssets from a tokenizer and the fields of its files; knows neither folders nor file formats."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.tokenizer_checks import leading_token
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import BundleError, CheckpointError, first_line
from megrez.runtime.manifest import SamplingDefaults, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Common end-of-turn and end-of-text tokens. Many checkpoints list not all of theirs as EOS tokens, and then never stop;
# these count only where they are special tokens.
TURN_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|turn_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>"),
    *("<|endoftext|>", "<|eos|>", "<eos>", "</s>"),
)
GREEDY = SamplingDefaults(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A checkpoint's fields on text. stop_tokens, stop_ids: every EOS token in any file, the main one first.

    add_bos: None where it is not stated and the tokenizer's post-processor decides on it and on the BOS itself.
    """

    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    stop_tokens: tuple[str, ...]
    stop_ids: tuple[int, ...]
    add_bos: bool | None
    sampling: SamplingDefaults
    ignored: tuple[str, ...]


def assemble(tokenizer_json: bytes, facts: TextFacts, *, vocab_size: int) -> TextAssets:
    """Raises CheckpointError when the tokenizer or the template cannot be read or no stop token is known."""
    tokenizer = parse_tokenizer(tokenizer_json)
    if facts.chat_template is not None:
        _check_template(facts.chat_template)
    bos, pad = (_known(_id(tokenizer, token), vocab_size) for token in (facts.bos_token, facts.pad_token))
    stop = _stop_ids(tokenizer, facts, vocab_size)
    if facts.add_bos is None:
        leading = leading_token(tokenizer)
        bos, add_bos = (bos, False) if leading is None else (leading, True)
    else:
        add_bos = facts.add_bos and bos is not None
    return TextAssets(
        tokenizer_json=tokenizer_json,
        chat_template=facts.chat_template,
        bos_token=facts.bos_token,
        eos_token=facts.eos_token,
        tokens=Tokens(bos=bos, pad=pad, stop=stop, add_bos=add_bos),
        sampling=facts.sampling,
        ignored=facts.ignored,
    )


def parse_tokenizer(tokenizer_json: bytes) -> "Tokenizer":
    """Raises CheckpointError for bytes that are not a tokenizer.json."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"tokenizer.json cannot be read ({error}): download it again") from error


def _check_template(source: str) -> None:
    """Raise CheckpointError at compile time rather than when the bundle is opened."""
    try:
        ChatTemplate(source).check()
        source.encode()
    except (BundleError, UnicodeEncodeError) as error:
        raise CheckpointError(f"{first_line(error)}, or remove it: the bundle then continues text") from error


def _id(tokenizer: "Tokenizer", token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _known(token: int | None, vocab_size: int) -> int | None:
    """None for a token that is outside of the model's vocabulary."""
    return token if token is not None and token < vocab_size else None


def _stop_ids(tokenizer: "Tokenizer", facts: TextFacts, vocab_size: int) -> tuple[int, ...]:
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    agreed = (token for token in TURN_ENDS if token in special)
    named: Iterable[int | None] = (
        *(_id(tokenizer, token) for token in facts.stop_tokens),
        *facts.stop_ids,
        *(_id(tokenizer, token) for token in agreed),
    )
    ids = tuple(dict.fromkeys(i for i in named if i is not None and 0 <= i < vocab_size))
    if not ids:
        raise CheckpointError("no stop token is known: name one as eos_token_id in generation_config.json")
    return ids
