"""A bundle ready to write text: bundle, session, tokenizer and chat template joined; knows no engine."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.chat import ChatTemplate, Message
from megrez.runtime.completion import Completion, Piece
from megrez.runtime.engines import open_session
from megrez.runtime.errors import UsageError
from megrez.runtime.generate import follow
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Token
from megrez.runtime.session import Session
from megrez.runtime.text import Detokenizer, Text
from megrez.runtime.threads import default_threads


@dataclass(slots=True, kw_only=True)
class Model:
    """One stream of text from one bundle. Use it as a context manager, or call `close`.

    template is None for a base model, which continues text but holds no conversation.
    """

    bundle: Bundle
    session: Session
    text: Text
    template: ChatTemplate | None
    _engine: Engine = field(init=False, repr=False)
    _streams: int = field(default=0, init=False, repr=False)
    _is_closed: bool = field(default=False, init=False, repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        verify: bool = False,
        slots: int = 1,
        capacity: int | None = None,
    ) -> "Model":
        """Open the bundle at `path`; raises BundleError, EngineError, MissingExtraError, or UsageError for more slots
        or capacity than it has.

        threads: None takes one per physical core. verify: check every file's SHA-256, not only its size.
        slots: sequences that its session holds at once, of which streams use the first. capacity: tokens that each of
        them holds, by default the bundle's context.
        """
        bundle = open_bundle(path, verify=verify)
        text = Text.open(bundle)
        template = ChatTemplate.open(bundle, text)
        session = open_session(bundle, threads=threads or default_threads(), slots=slots, capacity=capacity)
        return cls(bundle=bundle, session=session, text=text, template=template)

    def __post_init__(self) -> None:
        self._engine = Engine(
            self.session,
            stop_ids=self.bundle.manifest.tokens.stop,
            detokenizer=lambda prompt_ids: Detokenizer(self.text, prompt_ids),
        )

    @property
    def sampling(self) -> SamplingParams:
        """What the model's authors recommend."""
        return SamplingParams.from_defaults(self.bundle.manifest.sampling)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text to continue, or of a conversation to answer."""
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        if self.template is None:
            raise UsageError(
                f"the bundle {self.bundle.path} has no chat template, so it answers no messages: give it plain text"
            )
        # The template has written the BOS itself where the model wants one.
        return self.text.encode(self.template.render(prompt), add_bos=False)

    def generate(
        self,
        prompt: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Completion:
        """The whole answer; arguments and errors as in `stream_ids`."""
        prompt_ids = self.encode(prompt)
        pieces = self.stream_ids(prompt_ids, params, max_tokens=max_tokens, stop=stop)
        return Completion.of(pieces, prompt_tokens=len(prompt_ids))

    def stream(
        self,
        prompt: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Piece]:
        """The answer piece by piece; arguments and errors as in `stream_ids`."""
        return self.stream_ids(self.encode(prompt), params, max_tokens=max_tokens, stop=stop)

    def stream_ids(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reuse_prefix: bool = False,
    ) -> Iterator[Piece]:
        """One piece per token as it is known, the last with a finish reason. One stream at a time: they share a cache,
        and going on with one after another was asked for is a UsageError.

        params: `sampling` by default. max_tokens: None goes on to the end of the context.
        stop: strings that end the text and are left out of it.
        reuse_prefix: keep what the cache holds of the last prompt and answer: faster, with last-digit differences.
        Raises UsageError for a prompt that does not fit the context, EngineError when the engine fails.
        """
        if self._is_closed:
            raise UsageError(f"the model of {self.bundle.path} was closed: open it again")
        params = params or self.sampling
        params = dataclasses.replace(
            params, stop=stop or params.stop, max_tokens=params.max_tokens if max_tokens is None else max_tokens
        )
        self._engine.clear()
        self._streams += 1
        tokens = follow(self._engine, list(prompt_ids), params, reuse_prefix=reuse_prefix)
        return self._pieces(tokens, self._streams)

    def close(self) -> None:
        """Free its memory; closing twice is closing once."""
        if not self._is_closed:
            self._is_closed = True
            self.session.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _pieces(self, tokens: Iterator[Token], stream: int) -> Iterator[Piece]:
        self._check_latest(stream)
        for token in tokens:
            yield Piece(text=token.text, token=token.token, seconds=token.seconds, finish_reason=token.finish_reason)
            if token.finish_reason is None:
                self._check_latest(stream)

    def _check_latest(self, stream: int) -> None:
        if stream != self._streams:
            raise UsageError("another answer was asked of this model since: read one to its end, then ask for the next")
