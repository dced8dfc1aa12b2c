"""Runs one benchmark from the opened bundle or the server's address to its result, a JSON object."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from megrez.runtime.bench.bandwidth import CPU_ENGINES, bandwidth_share, read_bandwidth
from megrez.runtime.bench.connection import Address
from megrez.runtime.bench.dataset import Sample, read_dataset
from megrez.runtime.bench.drive import Note, StoppedError, run_workload
from megrez.runtime.bench.environment import describe_environment, load_average, peak_rss_bytes
from megrez.runtime.bench.figures import Record, combine
from megrez.runtime.bench.http_client import HttpClient, Target, find_target
from megrez.runtime.bench.latency import Run, measure, summarise_runs
from megrez.runtime.bench.local import LocalClient, MeteredSession
from megrez.runtime.bench.presets import PUBLISHED
from megrez.runtime.bench.settings import Load
from megrez.runtime.bench.workload import Workload
from megrez.runtime.bundle import Bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.engines import open_session
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.drafting.choose import Speculate, open_speculation
from megrez.runtime.serving.drafting.speculation import Totals
from megrez.runtime.serving.llm import LLM, SLOTS
from megrez.runtime.text import Text
from megrez.runtime.threads import default_threads

Result = dict[str, Any]
INTERRUPTED = "interrupted by Ctrl-C"
# Of prompts whose vocabulary is not known: every language model has more tokens than this.
SMALL_VOCABULARY = 10_000
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


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
    used = threads or default_threads()
    environment = describe_environment(bundle, used) | {"slots": slots, "context": context}
    runs: list[Run] = []
    stopped = None
    with contextlib.closing(open_session(bundle, threads=used, slots=slots, capacity=context)) as session:
        try:
            for run in measure(
                session, prompt_tokens=prompt_tokens, output_tokens=output_tokens, repeat=repeat, seed=seed
            ):
                runs.append(run)
        except KeyboardInterrupt:
            if not runs:
                raise
            stopped = INTERRUPTED
    found = summarise_runs(runs)
    detail = {name: found.pop(name) for name in ("spread", "repetitions")}
    found |= {"peak_rss_bytes": peak_rss_bytes(), "bundle_bytes": bundle.size, "threads": used, "slots": slots}
    workload = {"prompt_tokens": str(prompt_tokens), "output_tokens": str(output_tokens), "slots": slots, "seed": seed}
    result = {"view": "latency", **found, **detail, "stopped": stopped, "workload": workload}
    steps_per_s = found["decode_tokens_per_s"] / slots
    cached = steps_per_s * slots * (prompt_tokens + output_tokens / 2)
    return _with_bandwidth(result, environment, bundle, used, decode=(steps_per_s, cached, 1.0))


def run_local(
    bundle: Bundle,
    load: Load,
    *,
    slots: int | None,
    context: int | None,
    threads: int | None,
    note: Note,
    speculate: Speculate | None = None,
    draft: str | None = None,
) -> Result:
    """Requests to an `LLM` of this process. slots: as many as load.concurrency by default; context: as many tokens as
    the longest request takes. speculate: by default off for random prompts, whose answers repeat themselves as no
    user's do. draft: the bundle of a draft model.
    """
    used, slots = threads or default_threads(), slots or load.concurrency or SLOTS
    text = Text.open(bundle)
    template = ChatTemplate.open(bundle, text)
    samples = read_dataset(load.dataset) if load.dataset else []
    if load.chat and template is None:
        raise UsageError(f"the bundle {bundle.path} has no chat template: leave --chat out")
    workload = Workload(
        load=load,
        vocab_size=bundle.manifest.architecture.vocab_size,
        samples=samples,
        count_tokens=lambda answer: len(text.encode(answer, add_bos=False)),
    )
    context = context or _context(bundle, workload)
    environment = describe_environment(bundle, used) | {"slots": slots, "context": context}
    mode: Speculate = speculate or ("auto" if load.dataset or draft else "off")
    environment |= {"speculate": mode, "draft": draft}
    session = MeteredSession(session=open_session(bundle, threads=used, slots=slots, capacity=context))
    speculation = open_speculation(session, text, mode=mode, draft=draft, threads=used)
    repetitions: list[list[Record]] = []
    with LLM.over(bundle, session, text, template, speculation=speculation) as llm:
        client = LocalClient(llm, temperature=load.temperature, ignore_eos=load.ignore_eos, chat=load.chat)
        running = run_workload(client, workload, repetitions, started=session.reset, note=note)
        stopped = _finish(running, repetitions)
    steps, drafts = session.total, Totals() if speculation is None else speculation.totals
    result = _loaded(load, repetitions, stopped, "in-process") | {
        "decode_step_s": steps.decode_seconds / steps.decode_steps if steps.decode_steps else None,
        "sequences_per_decode_step": steps.sequences / steps.decode_steps if steps.decode_steps else None,
        "engine_seconds": steps.seconds,
        "drafted_tokens": drafts.drafted,
        "accepted_tokens": drafts.accepted,
        "peak_rss_bytes": peak_rss_bytes(),
        "bundle_bytes": bundle.size,
    }
    decode = (steps.decode_steps, steps.cached_tokens, steps.decode_seconds)
    return _with_bandwidth(result, environment, bundle, used, decode=decode)


def run_remote(
    url: str,
    load: Load,
    *,
    model: str | None,
    api_key: str | None,
    timeout_s: float,
    bundle: Bundle | None,
    note: Note,
) -> Result:
    """Requests to a server. bundle: what it serves, for the vocabulary of random prompts and its hash."""
    samples: list[Sample] = read_dataset(load.dataset) if load.dataset else []
    vocab_size = SMALL_VOCABULARY if bundle is None else bundle.manifest.architecture.vocab_size
    text = None if bundle is None else Text.open(bundle)
    workload = Workload(
        load=load,
        vocab_size=vocab_size,
        samples=samples,
        count_tokens=None if text is None else lambda answer: len(text.encode(answer, add_bos=False)),
    )
    environment = describe_environment(bundle, None) | {"url": url}
    repetitions: list[list[Record]] = []

    async def run() -> None:
        target: Target = await find_target(url, model=model, api_key=api_key, timeout_s=timeout_s)
        environment["model"] = target.model
        async with HttpClient(
            target, temperature=load.temperature, ignore_eos=load.ignore_eos, chat=load.chat
        ) as client:
            await run_workload(client, workload, repetitions, note=note)

    stopped = _finish(run(), repetitions)
    result = _loaded(load, repetitions, stopped, "http")
    is_here = Address.parse(url).host in _THIS_MACHINE
    return _with_bandwidth(result, environment, bundle if is_here else None, default_threads(), decode=(0, 0, 0))


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


def _with_bandwidth(
    result: Result, environment: Result, bundle: Bundle | None, threads: int, *, decode: tuple[float, float, float]
) -> Result:
    """bundle: what runs on this machine, if that is known. decode: steps, cached tokens of all their sequences, and
    seconds; no steps where they are not known.
    """
    environment["load_average_after"] = load_average()
    share = bandwidth = None
    if bundle is not None and bundle.manifest.engine in CPU_ENGINES:
        bandwidth = read_bandwidth(threads)
        steps, cached, seconds = decode
        share = bandwidth_share(
            bundle.manifest, decode_steps=steps, cached_tokens=cached, seconds=seconds, bandwidth=bandwidth
        )
    environment["memory_read_bytes_per_s"] = bandwidth
    return result | {"decode_bandwidth_share": share, "environment": environment}
