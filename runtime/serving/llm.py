"""Many prompts at once, for programs: `LLM` has vLLM's methods; one thread runs the engine for all callers."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.chat import ChatTemplate, Message
from megrez.runtime.errors import UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.drafting.choose import Speculate, open_drafted
from megrez.runtime.serving.drafting.speculation import Speculation, Totals
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.guided import Grammar, GuidedCompiler
from megrez.runtime.serving.outputs import RequestOutput, request_output
from megrez.runtime.serving.request import Request, Sink, Token
from megrez.runtime.serving.runner import Runner
from megrez.runtime.session import Session
from megrez.runtime.text import Detokenizer, Text
from megrez.runtime.threads import default_threads

Prompt = str | Sequence[int]
SLOTS = 8


class LLM:
    """A bundle that answers many requests at once. Any thread may call it; use it as a context manager, or `close`."""

    def __init__(
        self,
        model: str | Path,
        *,
        slots: int = SLOTS,
        context: int | None = None,
        threads: int | None = None,
        queue_limit: int | None = None,
        verify: bool = False,
        speculate: Speculate = "auto",
        draft: str | Path | None = None,
    ) -> None:
        """Open the bundle at `model`; raises BundleError, EngineError, MissingExtraError or UsageError.

        slots: sequences that run at once. context: most tokens of prompt and answer, by default the bundle's; the KV
        cache takes slots * context * manifest.kv_cache.bytes_per_token bytes. queue_limit: most waiting requests.
        speculate: "auto" drafts tokens where that pays, "always" as many as possible, "off" none. draft: the bundle of
        a smaller model that drafts them, with a KV cache of its own; by default they are looked up in prompt and
        output.
        """
        bundle = open_bundle(model, verify=verify)
        text = Text.open(bundle)
        template = ChatTemplate.open(bundle, text)
        session, speculation = open_drafted(
            bundle,
            text,
            threads=threads or default_threads(),
            slots=slots,
            capacity=context,
            mode=speculate,
            draft=draft,
            verify=verify,
        )
        self._set_up(bundle, session, text, template, queue_limit, speculation)

    @classmethod
    def over(
        cls,
        bundle: Bundle,
        session: Session,
        text: Text,
        template: ChatTemplate | None,
        *,
        queue_limit: int | None = None,
        speculation: Speculation | None = None,
    ) -> "LLM":
        """Use a session that is already open. speculation: None drafts nothing."""
        llm = cls.__new__(cls)
        llm._set_up(bundle, session, text, template, queue_limit, speculation)
        return llm

    def _set_up(
        self,
        bundle: Bundle,
        session: Session,
        text: Text,
        template: ChatTemplate | None,
        queue_limit: int | None,
        speculation: Speculation | None,
    ) -> None:
        self.bundle, self.session, self.text, self.template = bundle, session, text, template
        self.engine = Engine(
            session,
            stop_ids=bundle.manifest.tokens.stop,
            detokenizer=lambda prompt_ids: Detokenizer(text, prompt_ids),
            speculation=speculation,
        )
        self._runner = Runner(self.engine, queue_limit=queue_limit)
        self._guided: GuidedCompiler | None = None
        self._guided_lock = threading.Lock()

    @property
    def default_params(self) -> SamplingParams:
        """The sampling parameters that the model's authors recommend."""
        return SamplingParams.from_defaults(self.bundle.manifest.sampling)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt, given as text or token ids, all at once; outputs are in the order of the prompts.

        sampling_params: one for all, or one for each; by default `default_params`. Raises UsageError for a prompt that
        does not fit, EngineError if the engine fails.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        asked: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[list-item, arg-type]
        params = self._params_for(len(asked), sampling_params)
        texts = [prompt if isinstance(prompt, str) else None for prompt in asked]
        ids = [self.text.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in asked]
        return self._collect(texts, ids, params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several at once."""
        single = len(messages) > 0 and isinstance(messages[0], dict)
        asked: list[Sequence[Message]] = [messages] if single else list(messages)  # type: ignore[list-item, arg-type]
        params = self._params_for(len(asked), sampling_params)
        ids = [self.encode_chat(one) for one in asked]
        return self._collect([None] * len(ids), ids, params)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation to answer."""
        if self.template is None:
            raise UsageError(f"the bundle {self.bundle.path} has no chat template: give it plain text")
        return self.text.encode(self.template.render(messages), add_bos=False)

    async def stream(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None
    ) -> AsyncIterator[Token]:
        """The tokens of one request as they are generated, for asyncio; closing the iterator cancels the request."""
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[Token | Exception]()
        params = params or self.default_params

        def sink(found: Token | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the program's event loop has ended
                loop.call_soon_threadsafe(tokens.put_nowait, found)

        request = self.submit(self._encode(prompt), params, sink)
        finished = 0
        try:
            while finished < params.n:
                found = await tokens.get()
                if isinstance(found, Exception):
                    raise found
                finished += found.finish_reason is not None
                yield found
        finally:
            if finished < params.n:
                self.cancel(request)

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        sink: Sink,
        grammar: Grammar | None = None,
        *,
        is_awaited: bool = True,
    ) -> Request:
        """Queue a request; `sink` is called in the engine's thread and must not block.

        grammar: params.guided if it is compiled already; otherwise it is compiled here. is_awaited: as in Request.

        Raises UsageError for a prompt that does not fit or guided output that is not supported, QueueFullError if
        queue_limit requests are waiting.
        """
        if grammar is None and params.guided is not None:
            grammar = self.compile_guided(params.guided)
        request = Request(prompt_ids=prompt_ids, params=params, sink=sink, grammar=grammar, is_awaited=is_awaited)
        self._runner.submit(request)
        return request

    def compile_guided(self, guided: Guided) -> Grammar:
        """Compile a grammar, or take it from the cache, as `submit` does. It may take a second, so servers do it first.

        Raises UsageError for what is not supported, MissingExtraError without llguidance.
        """
        with self._guided_lock:
            if self._guided is None:
                self._guided = GuidedCompiler(
                    self.text.tokenizer_json(),
                    vocab_size=self.session.vocab_size,
                    stop_ids=self.bundle.manifest.tokens.stop,
                )
        return self._guided.compile(guided)

    def cancel(self, request: Request) -> None:
        """Drop the request before the engine's next step; further calls do nothing."""
        self._runner.cancel(request)

    def load(self) -> tuple[int, int, int]:
        """Running sequences, waiting requests, and cached tokens of the running sequences."""
        running = self.engine.running.copy()
        return len(running), self._runner.queued, sum(one.cached for one in running)

    @property
    def speculation(self) -> Totals | None:
        """Drafted and accepted tokens so far; None if speculation is off."""
        return None if self.engine.speculation is None else self.engine.speculation.totals

    def close(self) -> None:
        """End the thread and free the session; unfinished requests end with an error. Further calls do nothing."""
        self._runner.close()
        if self._guided is not None:
            self._guided.close()
        self.session.close()
        if self.engine.speculation is not None:
            self.engine.speculation.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _encode(self, prompt: Prompt | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        if len(prompt) and isinstance(prompt[0], int):
            return list(prompt)  # type: ignore[arg-type]
        return self.encode_chat(prompt)  # type: ignore[arg-type]

    def _params_for(self, count: int, given: SamplingParams | Sequence[SamplingParams] | None) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.default_params] * count
        if len(given) != count:
            raise UsageError(f"{count} prompts came with {len(given)} sampling params: give one for all, or one each")
        return list(given)

    def _collect(
        self, texts: Sequence[str | None], prompts: list[list[int]], params: list[SamplingParams]
    ) -> list[RequestOutput]:
        found: queue.SimpleQueue[tuple[int, Token | Exception]] = queue.SimpleQueue()
        requests: list[Request] = []

        def sink_of(at: int) -> Sink:
            return lambda token: found.put((at, token))

        try:
            for at, (ids, one) in enumerate(zip(prompts, params, strict=True)):
                requests.append(self.submit(ids, one, sink_of(at), is_awaited=False))
            tokens = self._wait(found, len(prompts), sum(one.n for one in params))
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise
        return [
            request_output(request.number, text, ids, one.n, own)
            for request, text, ids, one, own in zip(requests, texts, prompts, params, tokens, strict=True)
        ]

    def _wait(
        self, found: "queue.SimpleQueue[tuple[int, Token | Exception]]", prompts: int, sequences: int
    ) -> list[list[Token]]:
        tokens: list[list[Token]] = [[] for _ in range(prompts)]
        while sequences:
            at, one = found.get()
            if isinstance(one, Exception):
                raise one
            tokens[at].append(one)
            sequences -= one.finish_reason is not None
        return tokens
