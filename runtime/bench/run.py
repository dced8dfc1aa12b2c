"""Runs one benchmark from the opened bundle or the server's address to its result, a JSON object."""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from megrez.runtime.bench.connection import Address
from megrez.runtime.bench.dataset import Sample, read_dataset
from megrez.runtime.bench.drive import INTERRUPTED, StoppedError, run_workload
from megrez.runtime.bench.environment import describe_environment
from megrez.runtime.bench.figures import Record, combine
from megrez.runtime.bench.http_client import HttpClient, Target, find_target
from megrez.runtime.bench.latency import Run, measure, summarise_runs
from megrez.runtime.bench.live import Live
from megrez.runtime.bench.local import LocalClient, MeteredSession
from megrez.runtime.bench.presets import PUBLISHED
from megrez.runtime.bench.results import add_limits, add_session, size_of, stop_meter
from megrez.runtime.bench.sensors.meter import Meter
from megrez.runtime.bench.settings import Load
from megrez.runtime.bench.workload import Workload
from megrez.runtime.bundle import Bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.engines import open_session
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.drafting.choose import Speculate, open_drafted
from megrez.runtime.serving.drafting.speculation import Totals
from megrez.runtime.serving.llm import LLM, SLOTS
from megrez.runtime.text import FILE_NAME as TOKENIZER
from megrez.runtime.text import Text
from megrez.runtime.threads import default_threads

Result = dict[str, Any]
# Of prompts whose vocabulary is not known: every language model has more tokens than this.
SMALL_VOCABULARY = 10_000


def run_latency(
    bundle: Bundle,
    *,
    prompt_tokens: int,
    output_tokens: int,
    repeat: int,
    slots: int,
    context: int | None,
    threads: int | None,
    seed: int,
) -> Result:
    """Prefill and decode of a bare session. After Ctrl-C the repetitions until then are kept."""
    used, meter = threads or default_threads(), Meter()
    environment = describe_environment(bundle, used) | {"slots": slots, "context": context}
    runs: list[Run] = []
    stopped = None
    with contextlib.closing(open_session(bundle, threads=used, slots=slots, capacity=context)) as opened:
        session = MeteredSession(session=opened)

        def started() -> None:
            session.reset()
            meter.start()

        lengths = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
        try:
            for run in measure(session, **lengths, repeat=repeat, seed=seed, started=started):
                runs.append(run)
        except KeyboardInterrupt:
            if not runs:
                raise
            stopped = INTERRUPTED
        size = size_of(session)
    found = summarise_runs(runs)
    detail = {name: found.pop(name) for name in ("spread", "repetitions")}
    workload = {name: str(value) for name, value in lengths.items()} | {"slots": slots, "seed": seed}
    result = {"view": "latency", **found, "threads": used, "slots": slots, **detail}
    stop_meter(meter, result, len(runs) * slots * output_tokens)
    result |= {"stopped": stopped, "workload": workload}
    add_session(result, environment, bundle, session.total, size, threads=used)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How the engine of a load is opened, None for the default.

    slots: as many as load.concurrency by default. context: as many tokens as the longest request takes. speculate: by
    default off for random prompts, whose answers repeat themselves as no user's do. draft: the bundle of a draft model.
    """

    slots: int | None = None
    context: int | None = None
    threads: int | None = None
    speculate: Speculate | None = None
    draft: str | None = None


def run_local(bundle: Bundle, load: Load, opening: Opening, *, live: Live) -> Result:
    """Requests to an `LLM` of this process."""
    used, slots = opening.threads or default_threads(), opening.slots or load.concurrency or SLOTS
    meter = Meter()
    text = _open_text(bundle, load)
    template = ChatTemplate.open(bundle, text)
    if load.chat and template is None:
        raise UsageError(f"the bundle {bundle.path} has no chat template: leave --chat out")
    workload = _workload(load, bundle, text)
    context = opening.context or _context(bundle, workload)
    mode: Speculate = opening.speculate or ("auto" if load.dataset or opening.draft else "off")
    environment = describe_environment(bundle, used) | {"slots": slots, "context": context}
    environment |= {"speculate": mode, "draft": opening.draft}
    opened, speculation = open_drafted(
        bundle, text, threads=used, slots=slots, capacity=context, mode=mode, draft=opening.draft, verify=False
    )
    session, size = MeteredSession(session=opened), size_of(opened)
    repetitions: list[list[Record]] = []

    def started() -> None:
        session.reset()
        meter.start()

    with LLM.over(bundle, session, text, template, speculation=speculation) as llm:
        client = LocalClient(llm, temperature=load.temperature, ignore_eos=load.ignore_eos, chat=load.chat, live=live)
        stopped = _finish(run_workload(client, workload, repetitions, started=started, note=live.note), repetitions)
        result = _loaded(load, repetitions, stopped, "in-process")
        stop_meter(meter, result, result["output_tokens"])
    drafts = Totals() if speculation is None else speculation.totals
    result |= {"drafted_tokens": drafts.drafted, "accepted_tokens": drafts.accepted}
    add_session(result, environment, bundle, session.total, size, threads=used)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """model: None for the first that it lists. timeout_s: the longest silence before it counts as gone."""

    url: str
    model: str | None
    api_key: str | None
    timeout_s: float


def run_remote(server: Server, load: Load, *, bundle: Bundle | None, live: Live) -> Result:
    """Requests to a server. bundle: what it serves, for the vocabulary of random prompts and its hash."""
    workload = _workload(load, bundle, None if bundle is None else Text.open(bundle))
    is_here = Address.parse(server.url).is_this_machine
    environment, meter = describe_environment(bundle, None) | {"url": server.url}, Meter() if is_here else Meter({})
    repetitions: list[list[Record]] = []

    async def run() -> None:
        target: Target = await find_target(
            server.url, model=server.model, api_key=server.api_key, timeout_s=server.timeout_s
        )
        environment["model"] = target.model
        async with HttpClient(
            target, temperature=load.temperature, ignore_eos=load.ignore_eos, chat=load.chat, live=live
        ) as client:
            await run_workload(client, workload, repetitions, started=meter.start, note=live.note)

    stopped = _finish(run(), repetitions)
    result = _loaded(load, repetitions, stopped, "http")
    stop_meter(meter, result, result["output_tokens"])
    engine = bundle.manifest.engine if bundle is not None and is_here else None
    add_limits(result, environment, engine=engine, threads=default_threads(), bundle=bundle, steps=None)
    return result


def _open_text(bundle: Bundle, load: Load) -> Text:
    """Random prompts need no tokenizer, so that bundles of random weights, which have none, are measured too."""
    if load.dataset is not None or bundle.find(TOKENIZER) is not None:
        return Text.open(bundle)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Text(Tokenizer(WordLevel({"?": 0}, unk_token="?")), bundle.manifest.tokens)


def _workload(load: Load, bundle: Bundle | None, text: Text | None) -> Workload:
    samples: list[Sample] = read_dataset(load.dataset) if load.dataset else []
    return Workload(
        load=load,
        vocab_size=SMALL_VOCABULARY if bundle is None else bundle.manifest.architecture.vocab_size,
        samples=samples,
        count_tokens=None if text is None else lambda answer: len(text.encode(answer, add_bos=False)),
    )


def _context(bundle: Bundle, workload: Workload) -> int | None:
    """Tokens per slot that the longest request needs; the bundle's context where the dataset decides."""
    if workload.samples:
        return None
    needed, most = workload.longest(), bundle.manifest.context_length
    if needed > most + 1:
        raise UsageError(
            f"{workload.load.prompt_tokens} prompt and {workload.load.output_tokens} output tokens do not fit the "
            f"context of {most}: measure fewer, or compile with a longer context"
        )
    return min(needed, most)


def _finish(running: Awaitable[None], repetitions: list[list[Record]]) -> str | None:
    """Why it ended early, if it did and there is anything to report."""

    async def run() -> None:
        await running

    try:
        asyncio.run(run())
    except StoppedError as error:
        if not any(repetitions):
            raise
        return str(error)
    except KeyboardInterrupt:
        if not any(repetitions):
            raise
        return INTERRUPTED
    return None


def _loaded(load: Load, repetitions: list[list[Record]], stopped: str | None, client: str) -> Result:
    found = combine([one for one in repetitions if one])
    published = PUBLISHED.get(load.preset or "")
    ratios = {} if published is None else published.ratios(found)
    head = {"view": "load", "client": client}
    return {**head, **found, **ratios, "stopped": stopped, "workload": load.describe()}
