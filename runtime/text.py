"""Text to token ids and back, for one bundle; independent of chat templates and the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, UsageError, first_line
from megrez.runtime.manifest import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"

_REPLACEMENT = "\ufffd"
# A UTF-8 character has at most 4 bytes, so an unfinished one shows as at most 3 replacement characters.
_UNFINISHED = 3
_WINDOW = 32
_CONTEXT = 6


class Text:
    """The tokenizer of a bundle, with the special token ids of its manifest."""

    def __init__(self, tokenizer: "Tokenizer", tokens: Tokens) -> None:
        # A tokenizer.json may contain truncation and padding settings from training, which must not apply to prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _disable_cache(tokenizer)
        self._tokenizer = tokenizer
        self._tokens = tokens

    @classmethod
    def open(cls, bundle: Bundle) -> "Text":
        """Read tokenizer.json; raises BundleError if the bundle has none or it cannot be read."""
        from tokenizers import Tokenizer

        path = bundle.find(FILE_NAME)
        if path is None:
            raise BundleError(
                f"the bundle {bundle.path} has no {FILE_NAME}, so it cannot process text: "
                "compile it from a checkpoint with a tokenizer"
            )
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise BundleError(f"{path} cannot be read ({error}): compile the bundle again") from error
        return cls(tokenizer, bundle.manifest.tokens)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised.

        add_bos: add a leading BOS token unless the text has one; by default as the manifest says.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise UsageError("the prompt is not valid Unicode text: pass it as UTF-8") from error
        except Exception as error:  # tokenizers raises bare Exceptions
            raise UsageError(f"the model's tokenizer cannot read this text: {first_line(error)}") from error
        bos = self._tokens.bos
        wanted = self._tokens.add_bos if add_bos is None else add_bos
        return [bos, *ids] if wanted and bos is not None and ids[:1] != [bos] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, including special tokens, since function calls consist of them."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def tokenizer_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return self._tokenizer.to_str()

    def vocabulary(self) -> dict[str, int]:
        """Every token's spelling in tokenizer.json and its id, added tokens included."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    def token_id(self, spelling: str) -> int | None:
        """The id of the token with this text; None where there is none."""
        return self._tokenizer.token_to_id(spelling)

    def token_text(self, token: int | None) -> str | None:
        """The text of one special token, as templates use it; None for None."""
        return None if token is None else self._tokenizer.id_to_token(token)


def _disable_cache(tokenizer: "Tokenizer") -> None:
    """Do not keep the words that were encoded.

    Since tokenizers 0.23 a BPE model's cache belongs to the thread, by model, and outlives the model: a thread that
    opens and closes models would keep up to 10,000 words of each. Without it, encoding takes 1 to 2 µs more per token.
    Source: huggingface/tokenizers, pull request 2028.
    """
    resize = getattr(tokenizer.model, "_resize_cache", None)  # models of whole words have none
    if resize is not None:
        resize(0)


class Detokenizer:
    """Decodes tokens one by one, and never returns part of a character.

    A token's text depends on its neighbours (a leading space, the bytes of one character), so a short window of tokens
    is decoded again each time, and only the new text returned.
    """

    def __init__(self, text: Text, prompt_ids: Sequence[int] = ()) -> None:
        self._text = text
        self._restart(list(prompt_ids[-_CONTEXT:]))

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._pending()
        unfinished = len(text) - len(text.rstrip(_REPLACEMENT))
        fresh = self._show(text[: len(text) - min(unfinished, _UNFINISHED)])
        if unfinished and len(self._ids) > _WINDOW:
            fresh += self._show(text)
            unfinished = 0
        if not unfinished:
            self._restart(self._ids[self._done :])
        return fresh

    def flush(self) -> str:
        """The text that was held back, at the end of the stream; an incomplete character becomes U+FFFD."""
        return self._show(self._pending())

    def _restart(self, ids: list[int]) -> None:
        """Start a new window with `ids`, whose text has been returned already.

        The last tokens of a prompt may begin inside a character, whose bytes would make the following ones invalid.
        """
        context = self._text.decode(ids)
        while context.startswith(_REPLACEMENT):
            ids = ids[1:]
            context = self._text.decode(ids)
        self._ids, self._done, self._shown = ids, len(ids), 0
        self._context = context

    def _pending(self) -> str:
        """The text of the tokens since the window started."""
        text = self._text.decode(self._ids)
        if text.startswith(self._context):
            return text[len(self._context) :]
        # With an invalid byte, a byte-fallback decoder replaces the complete characters before it too: leave those out.
        return self._text.decode(self._ids[self._done :])

    def _show(self, text: str) -> str:
        fresh = text[self._shown :]
        self._shown += len(fresh)
        return fresh
