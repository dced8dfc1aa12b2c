"""Enforces a Guided with llguidance: compiles grammars and computes the mask of allowed next tokens.

Independent of the engine and of requests. Masks are computed in separate threads while the engine runs.
"""

import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.errors import BundleError, EngineError, MissingExtraError, UsageError, first_line
from megrez.runtime.guided import Guided
from megrez.runtime.serving.grammar import grammar_text

Allowed = NDArray[np.bool_]
# Masks take tens of microseconds; more threads would wait for the interpreter lock.
THREADS = 2
CACHED_GRAMMARS = 64
# A fifth and a tenth of llguidance's own: a regular expression such as (a{1000}){1000} is refused after 0.3 s, not 2.7.
LEXER_FUEL, STEP_FUEL = 200_000, 20_000


class Matcher(Protocol):
    """The state of one sequence in its grammar."""

    def allowed(self) -> Allowed:
        """[vocab_size] the allowed next tokens, and stop tokens where the answer may end; may wait for the mask."""
        ...

    def push(self, token: int) -> bool:
        """Advance by an allowed token; True where the answer is complete. Starts computing the next mask."""
        ...

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, from the first on, are allowed one after the other; the state stays as it is."""
        ...


class Grammar(Protocol):
    """A compiled Guided, shared by all sequences that use it."""

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer. Starts computing the first mask."""
        ...


class GuidedCompiler:
    """Compiles for one tokenizer and caches the latest grammars. Any thread may call it."""

    def __init__(self, tokenizer_json: str, *, vocab_size: int, stop_ids: Collection[int]) -> None:
        """vocab_size: of the logits; ids that the tokenizer lacks are never allowed. stop_ids: what ends an answer.

        Raises MissingExtraError without llguidance, UsageError for a model without stop tokens, BundleError for a
        tokenizer that llguidance cannot read.
        """
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError(needed_for="guided output", library="llguidance", extra="serve") from error
        self._ids, self._specials = _token_ids(tokenizer_json)
        self._vocab_size = vocab_size
        ends = sorted(one for one in stop_ids if one < min(self._ids, vocab_size))
        if not ends:
            raise UsageError("guided output needs a stop token and the bundle names none: compile it with one")
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=max(self._ids, vocab_size), eos_token=ends)
        except Exception as error:  # llguidance raises bare Exceptions
            raise BundleError(f"guided output cannot read this tokenizer: {first_line(error)}") from error
        self._limits = llguidance.LLParserLimits(
            verbose_errors=False, initial_lexer_fuel=LEXER_FUEL, step_lexer_fuel=STEP_FUEL
        )
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="megrez-guided")
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, guided: Guided) -> Grammar:
        """Compile a grammar, up to a second for a large schema, or take it from the cache.

        Raises UsageError for a constraint that cannot be enforced completely.
        """
        try:
            text = grammar_text(guided, self._specials)
        except ValueError as error:  # lone surrogates, and integers beyond 64 bits
            raise UsageError(f"guided output cannot enforce this: {first_line(error)[:200]}") from error
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
                return self._compiled[text]
        grammar = self._new(text)
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        return grammar

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new(self, text: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        # A warning means that a part of the grammar would be ignored.
        faults = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if faults:
            raise UsageError(f"guided output cannot enforce this: {' '.join(faults[0].split())[:500]}")
        # Copies of the matcher share its cache, and a grammar without any answer is noticed only here.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise UsageError(f"guided output cannot enforce this: no token can begin an answer ({_error(matcher)})")
        return _LlguidanceGrammar(matcher, self._pool, vocab_size=self._vocab_size, ids=self._ids)


class _LlguidanceGrammar:
    def __init__(self, fresh: Any, pool: ThreadPoolExecutor, *, vocab_size: int, ids: int) -> None:
        self._fresh, self._pool, self._vocab_size, self._ids = fresh, pool, vocab_size, ids

    def matcher(self) -> Matcher:
        return _LlguidanceMatcher(self._fresh.deep_copy(), self._pool, vocab_size=self._vocab_size, ids=self._ids)


class _LlguidanceMatcher:
    def __init__(self, matcher: Any, pool: ThreadPoolExecutor, *, vocab_size: int, ids: int) -> None:
        self._matcher, self._pool, self._vocab_size, self._ids = matcher, pool, vocab_size, ids
        self._mask: Future[bytes] = pool.submit(matcher.compute_bitmask)

    def allowed(self) -> Allowed:
        bits = self._bits()
        self._check()
        allowed = unpack(bits, self._vocab_size)
        allowed[self._ids :] = False
        return allowed

    def push(self, token: int) -> bool:
        self._bits()  # the library's matcher is not to be used by two threads at once
        self._matcher.consume_token(token)
        self._check()
        if self._matcher.is_stopped():
            return True
        self._mask = self._pool.submit(self._matcher.compute_bitmask)
        return False

    def accepts(self, tokens: Sequence[int]) -> int:
        self._bits()
        known = itertools.takewhile(lambda token: token < self._ids, tokens)  # the others are errors to the library
        return int(self._matcher.validate_tokens(list(known)))

    def _bits(self) -> bytes:
        try:
            return self._mask.result()
        except Exception as error:  # llguidance raises bare Exceptions
            raise EngineError(f"guided output failed within the answer: {first_line(error)}") from error

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(
                f"guided output failed within the answer ({_error(self._matcher)}): ask for a simpler grammar"
            )


def _error(matcher: Any) -> str:
    return " ".join(matcher.get_error().split("<")[0].split())[:200]


def unpack(bits: bytes, count: int) -> Allowed:
    """[count] from one bit per token, the lowest first; bits that are missing are False."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").view(np.bool_)


def _token_ids(tokenizer_json: str) -> tuple[int, dict[str, int]]:
    """The number of ids of a tokenizer.json, and the ids of its special tokens by their text."""
    settings = json.loads(tokenizer_json)
    vocab = settings["model"]["vocab"]
    own = max(vocab.values(), default=-1) + 1 if isinstance(vocab, dict) else len(vocab)
    added = settings.get("added_tokens", ())
    specials = {one["content"]: one["id"] for one in added if one["special"]}
    return max(own, *(one["id"] + 1 for one in added), 0), specials
