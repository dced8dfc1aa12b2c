"""From options to a Speculation: prompt lookup, or a draft model from a bundle of its own."""

from pathlib import Path
from typing import Literal, get_args

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.drafting.draft_model import DraftModel
from megrez.runtime.serving.drafting.drafter import Drafter
from megrez.runtime.serving.drafting.lookup import PromptLookup
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.session import Session
from megrez.runtime.text import Text

# auto: draft as many tokens as pay. always: as many as possible, to measure or to test.
Speculate = Literal["auto", "always", "off"]
MODES: tuple[Speculate, ...] = get_args(Speculate)


def open_speculation(
    session: Session,
    text: Text,
    *,
    mode: Speculate = "auto",
    draft: str | Path | None = None,
    threads: int | None = None,
    verify: bool = False,
) -> Speculation | None:
    """None if it is off. session, text: of the model that is drafted for.

    draft: the bundle of a draft model, None for prompt lookup. Its session has as many slots; threads and verify are
    for opening it. Raises UsageError for an unknown mode and for a draft model with another tokenizer, and what opening
    a bundle raises.
    """
    if mode not in MODES:
        raise UsageError(f"speculate is {mode!r}: give one of {', '.join(MODES)}")
    if mode == "off":
        if draft is not None:
            raise UsageError("a draft model needs speculation, which is off: leave one of the two out")
        return None
    drafter: Drafter = PromptLookup()
    if draft is not None:
        bundle = open_bundle(draft, verify=verify)
        check_same_tokens(text, Text.open(bundle), bundle)
        drafter = _draft_model(session, bundle, threads)
    return Speculation(drafter, is_adaptive=mode == "auto")


def open_drafted(
    bundle: Bundle,
    text: Text,
    *,
    threads: int | None,
    slots: int,
    capacity: int | None,
    mode: Speculate,
    draft: str | Path | None,
    verify: bool,
) -> tuple[Session, Speculation | None]:
    """The bundle's session and its speculation; see `open_session` and `open_speculation`."""
    session = open_session(bundle, threads=threads, slots=slots, capacity=capacity)
    try:
        return session, open_speculation(session, text, mode=mode, draft=draft, threads=threads, verify=verify)
    except BaseException:
        session.close()
        raise


def check_same_tokens(text: Text, other: Text, bundle: Bundle) -> None:
    """Raise UsageError unless every token has the same id in both; other: of the draft model in `bundle`."""
    own, its = ({token: word for word, token in one.vocabulary().items()} for one in (text, other))
    if own == its:
        return
    first = min(token for token in own.keys() | its.keys() if own.get(token) != its.get(token))
    raise UsageError(
        f"the draft model {bundle.path} has another tokenizer: token {first} is {_shown(its.get(first))} there, "
        f"{_shown(own.get(first))} here: give a smaller model of the same family"
    )


def _draft_model(session: Session, bundle: Bundle, threads: int | None) -> DraftModel:
    capacity = min(session.capacity, bundle.manifest.context_length)
    opened = open_session(bundle, threads=threads, slots=session.slots, capacity=capacity)
    return DraftModel(opened, vocab_size=session.vocab_size)


def _shown(word: str | None) -> str:
    return "missing" if word is None else repr(word[:40])
