"""Refuses tokenizers and chat templates that a bundle cannot reproduce; knows no folder."""

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

    Raises CheckpointError where it adds other tokens: a bundle can add a leading one only.
    """
    try:
        plain: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        whole: list[int] = tokenizer.encode("a").ids
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(
            f"the tokenizer cannot encode the text 'a' ({first_line(error)}): download it again"
        ) from error
    if whole == plain:
        return None
    if whole[1:] == plain:
        return whole[0]
    found = " ".join(str(tokenizer.id_to_token(token)) for token in whole)
    raise CheckpointError(
        f"tokenizer.json's post-processor encodes the text 'a' as {found!r}, and a bundle can add a leading token "
        "only: remove the other special tokens from its post_processor"
    )


def cleans_up(tokenizer: "Tokenizer", tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether transformers removes spaces before punctuation when decoding; for BPE only with FORCED_CLEAN_UP."""
    if not tokenizer_config.get("clean_up_tokenization_spaces"):
        return False
    return type(tokenizer.model).__name__ != "BPE" or bool(tokenizer_config.get(FORCED_CLEAN_UP))


def check_tokens_have_embeddings(tokenizer: "Tokenizer", vocab_size: int, *, padding: str | None) -> None:
    """Raise CheckpointError if a text can contain a token without a row in the embedding; transformers fails too.

    padding: the padding token, which is exempt: no text is expected to contain it.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= vocab_size and token != padding)
    if beyond:
        named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:SHOWN])
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        raise CheckpointError(
            f"the tokenizer has tokens for which the model has no embedding (vocab_size is {vocab_size}): {named}{more}"
            ": remove them from the tokenizer's files, or use a checkpoint with resized embeddings"
        )


def check_template_variables(assets: TextAssets, tokenizer: "Tokenizer", stated: Mapping[str, str]) -> None:
    """Raise CheckpointError if the runtime's special tokens make the template render other text than transformers'.

    stated: transformers' variables, such as {"bos_token": "<s>"}. The runtime has the BOS, the first stop token and the
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
        found = ", ".join(f"{name} as {given.get(name)!r}, not {stated.get(name)!r}" for name in changed)
        raise CheckpointError(
            f"the chat template uses a special token that differs in a bundle ({found}): name a token of the "
            "vocabulary in tokenizer_config.json, or write it out in the template"
        )


def _render(template: str, variables: Mapping[str, str], messages: Sequence[Message]) -> str:
    """The rendered text, or the error."""
    try:
        return ChatTemplate(template, variables).render(messages)
    except MegrezError as error:
        return str(error)
