"""Text generation from one bundle: session, tokenizer and chat template together; independent of engines."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.chat import ChatTemplate, Message
from megrez.runtime.completion import Completion, Piece
from megrez.runtime.errors import UsageError
from megrez.runtime.generate import follow
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.drafting.choose import Speculate, open_drafted
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Token
from megrez.runtime.session import Session
from megrez.runtime.text import Detokenizer, Text
from megrez.runtime.threads import default_threads


@dataclass(slots=True, kw_only=True)
class Model:
    """A bundle that generates one stream of text at a time. Use it as a context manager, or call `close`.

    template: None for a base model, which continues text but has no chat template. speculation: None drafts nothing.
    """

    bundle: Bundle
    session: Session
    text: Text
    template: ChatTemplate | None
    speculation: Speculation | None = None
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
        speculate: Speculate = "auto",
        draft: str | Path | None = None,
    ) -> "Model":
        """Open the bundle at `path`; raises BundleError, EngineError, MissingExtraError, or UsageError for more slots
        or capacity than it allows.

        threads: by default one per physical core. verify: check every file's SHA-256, not only its size.
        slots: sequences in the KV cache, where `reuse_prefix` finds earlier conversations. capacity: tokens per slot,
        by default the bundle's context length. speculate: "auto" drafts tokens where that pays, "always" as many as
        possible, "off" none. draft: the bundle of a smaller model that drafts them; by default they are looked up in
        prompt and output.
        """
        bundle = open_bundle(path, verify=verify)
        text = Text.open(bundle)
        template = ChatTemplate.open(bundle, text)
        session, speculation = open_drafted(
            bundle,
            text,
            threads=threads or default_threads(),
            slots=slots,
            capacity=capacity,
            mode=speculate,
            draft=draft,
            verify=verify,
        )
        return cls(bundle=bundle, session=session, text=text, template=template, speculation=speculation)

    def __post_init__(self) -> None:
        self._engine = Engine(
            self.session,
            stop_ids=self.bundle.manifest.tokens.stop,
            detokenizer=lambda prompt_ids: Detokenizer(self.text, prompt_ids),
            speculation=self.speculation,
        )

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters that the model's authors recommend."""
        return SamplingParams.from_defaults(self.bundle.manifest.sampling)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text to continue, or of a conversation to answer."""
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        if self.template is None:
            raise UsageError(
                f"the bundle {self.bundle.path} has no chat template, so it cannot answer messages: give it plain text"
            )
        # The template writes the BOS token itself if the model needs one.
        return self.text.encode(self.template.render(prompt), add_bos=False)

    def generate(
        self,
        prompt: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Completion:
        """The complete answer; arguments and errors as in `stream_ids`."""
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
        """One piece per token, the last with a finish reason. One stream at a time: to continue a stream after another
        was started is a UsageError.

        params: `sampling` by default. max_tokens: None generates to the end of the context.
        stop: strings that end the text and are left out of it.
        reuse_prefix: do not recompute a cached prefix of an earlier prompt: faster, with rounding differences.
        Raises UsageError for a prompt that does not fit the context, EngineError if the engine fails.
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
        """Free the memory; further calls do nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.session.close()
            if self.speculation is not None:
                self.speculation.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _pieces(self, tokens: Iterator[Token], stream: int) -> Iterator[Piece]:
        self._check_latest(stream)
        for token in tokens:
            yield Piece(
                text=token.text,
                token=token.token,
                seconds=token.seconds,
                finish_reason=token.finish_reason,
                drafted_tokens=token.drafted_tokens,
                accepted_tokens=token.accepted_tokens,
            )
            if token.finish_reason is None:
                self._check_latest(stream)

    def _check_latest(self, stream: int) -> None:
        if stream != self._streams:
            raise UsageError(
                "another answer was started on this model since: read one answer to its end before the next"
            )
