"""What a tokenizer does that a bundle cannot repeat, refused by name; knows no folder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megrez.compile.checkpoint.protocol import TextAssets
from megrez.runtime.chat import ChatTemplate, Message
from megrez.runtime.errors import CheckpointError, MegrezError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHOWN = 6
FORCED_CLEAN_UP = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS: tuple[tuple[Message, ...], ...] = ((USER,), (USER, ANSWER, USER), (SYSTEM, USER, ANSWER, USER))


def leading_token(tokenizer: "Tokenizer") -> int | None:
    """The token with which the post-processor begins a text, or None.

    Raises CheckpointError where it adds any other: a bundle says of a BOS alone whether one is added.
    """
    try:
        plain: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        whole: list[int] = tokenizer.encode("a").ids
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"the tokenizer cannot read a text ({first_line(error)}): download it again") from error
    if whole == plain:
        return None
    if whole[1:] == plain:
        return whole[0]
    found = " ".join(str(tokenizer.id_to_token(token)) for token in whole)
    raise CheckpointError(
        f"tokenizer.json's post-processor makes {found!r} of the text 'a', and a bundle can add a leading token only: "
        "take the others out of its post_processor, if the model is to continue text"
    )


def cleans_up(tokenizer: "Tokenizer", tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether transformers takes spaces before punctuation out of decoded text: of BPE only where it is forced to."""
    if not tokenizer_config.get("clean_up_tokenization_spaces"):
        return False
    return type(tokenizer.model).__name__ != "BPE" or bool(tokenizer_config.get(FORCED_CLEAN_UP))


def check_tokens_have_embeddings(tokenizer: "Tokenizer", vocab_size: int, *, padding: str | None) -> None:
    """Raise CheckpointError if a text can hold a token past the embedding's last row, where transformers fails too.

    padding: the token that no text is expected to hold, and that may be there.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= vocab_size and token != padding)
    if beyond:
        named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:SHOWN])
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        raise CheckpointError(
            f"the tokenizer has tokens for which the model has no embedding (vocab_size is {vocab_size}): {named}{more}"
            ": take them out of the tokenizer's files, or the checkpoint with resized embeddings"
        )


def check_template_variables(assets: TextAssets, tokenizer: "Tokenizer", stated: Mapping[str, str]) -> None:
    """Raise CheckpointError if the template renders otherwise with the token names that the runtime gives it.

    stated: what transformers gives it, as {"bos_token": "<s>"}. The runtime has the BOS, the first stop token and the
    padding token of the manifest.
    """
    if assets.chat_template is None:
        return
    tokens = assets.tokens
    ids = {"bos_token": tokens.bos, "eos_token": tokens.stop[0], "pad_token": tokens.pad}
    given = {name: str(tokenizer.id_to_token(token)) for name, token in ids.items() if token is not None}
    changed = sorted(name for name in {*stated, *given} if stated.get(name) != given.get(name))
    source = assets.chat_template
    if changed and any(_render(source, stated, m) != _render(source, given, m) for m in CONVERSATIONS):
        told = ", ".join(f"{name} as {given.get(name)!r}, not {stated.get(name)!r}" for name in changed)
        raise CheckpointError(
            f"the chat template asks for a token that a bundle would give it otherwise ({told}): state it in "
            "tokenizer_config.json as one of the model's tokens, or write it out in the template"
        )


def _render(template: str, variables: Mapping[str, str], messages: Sequence[Message]) -> str:
    """What is rendered, or why nothing is."""
    try:
        return ChatTemplate(template, variables).render(messages)
    except MegrezError as error:
        return str(error)
