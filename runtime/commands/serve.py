"""`megrez serve`: a bundle behind OpenAI's and Anthropic's HTTP interfaces."""

import contextlib
import re
from pathlib import Path

import click

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.commands.options import (
    Number,
    bundle_argument,
    draft_option,
    speculate_option,
    threads_option,
    verify_option,
    whole,
)
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.drafting.choose import Speculate
from megrez.runtime.serving.http.app import Limits
from megrez.runtime.serving.http.log import start_logging
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.server import Server, is_loopback, listening
from megrez.runtime.serving.llm import LLM, SLOTS

MOST_SLOTS = 64
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@click.command("serve")
@bundle_argument
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Listen on this address; any that other machines reach needs --api-key.",
)
@click.option(
    "--port",
    type=whole(0, 65535),
    default=8000,
    show_default=True,
    help="Listen on port N; 0 takes a free one.",
)
@click.option("--uds", type=click.Path(path_type=Path), metavar="PATH", help="Listen on this Unix socket instead.")
@click.option("--slots", type=whole(1), help=f"Run up to N sequences at once.  [default: {SLOTS}]")
@click.option(
    "--context",
    type=whole(1),
    help="Allow N tokens of prompt and answer together.  [default: the bundle's context]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Choose the number of slots so that the KV cache takes at most this, such as 2G.  [default: see --slots]",
)
@click.option(
    "--queue",
    "queue_limit",
    type=whole(0),
    default=256,
    show_default=True,
    help="Let up to N requests wait for a slot; refuse more with status 429.",
)
@click.option(
    "--api-key",
    envvar="MEGREZ_API_KEY",
    metavar="KEY",
    help="Refuse requests without this key.  [default: the environment variable MEGREZ_API_KEY]",
)
@click.option("--name", metavar="ID", help="Serve the model under this id.  [default: the bundle's folder]")
@click.option(
    "--drain",
    "drain_s",
    type=Number(click.FloatRange(min=0)),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Give running requests this long to finish after SIGTERM or Ctrl-C.",
)
@speculate_option
@draft_option
@threads_option
@verify_option
def serve_command(
    bundle: str,
    host: str,
    port: int,
    uds: Path | None,
    slots: int | None,
    context: int | None,
    memory: str | None,
    queue_limit: int,
    api_key: str | None,
    name: str | None,
    drain_s: float,
    speculate: Speculate,
    draft: str | None,
    threads: int | None,
    verify: bool,
) -> None:
    """Answer HTTP requests until SIGTERM or Ctrl-C. Prints its address when it is ready."""
    _check_key(api_key, host, uds)
    opened = open_bundle(bundle, verify=verify)
    drafting = None if draft is None else open_bundle(draft)
    chosen = slots or SLOTS
    if memory is not None:
        chosen = fit_slots(opened, memory, slots=slots, context=context, draft=drafting)
    with listening(host, port, uds) as (listener, address), contextlib.ExitStack() as stack:
        llm = stack.enter_context(
            LLM(
                opened.path,
                slots=chosen,
                context=context,
                threads=threads,
                queue_limit=queue_limit,
                speculate=speculate,
                draft=draft,
            )
        )
        if llm.template is not None:
            llm.template.check()
        served = Served.of(llm, name or opened.path.resolve().name, queue_limit=queue_limit)
        start_logging()
        server = Server(
            served,
            Limits(api_key=api_key),
            drain_s=drain_s,
            on_ready=lambda: click.echo(_ready(served, address, drafting)),
        )
        server.serve_until_signal(listener)


def fit_slots(
    bundle: Bundle, memory: str, *, slots: int | None, context: int | None, draft: Bundle | None = None
) -> int:
    """How many slots a KV cache of `memory` holds; UsageError where that is none, or fewer than `slots`.

    draft: the bundle of a draft model, whose KV cache counts too.
    """
    budget = parse_size(memory)
    per_token = _bytes_per_token(bundle, draft)
    tokens = context or bundle.manifest.context_length
    fits = budget // (per_token * tokens)
    wanted = slots or 1
    if fits < wanted:
        raise UsageError(
            f"--memory {memory} holds {budget // per_token} tokens, {wanted} x --context {tokens} are "
            f"{wanted * tokens}: give --memory {-(-wanted * tokens * per_token >> 20)}M, fewer slots or less context"
        )
    return slots or min(fits, MOST_SLOTS)


def parse_size(text: str) -> int:
    """Bytes of "512M" or "2G" (binary); UsageError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)i?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise UsageError(f"--memory {text} is not a size: give one such as 512M or 2G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _check_key(key: str | None, host: str, uds: Path | None) -> None:
    if key is not None and not key.strip():
        raise UsageError("the API key is empty: give one, or leave --api-key and MEGREZ_API_KEY out")
    if key is None and uds is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines: set MEGREZ_API_KEY (or --api-key), which requests "
            "then need"
        )


def _bytes_per_token(bundle: Bundle, draft: Bundle | None) -> int:
    return sum(one.manifest.kv_cache.bytes_per_token for one in (bundle, draft) if one is not None)


def _ready(served: Served, address: str, draft: Bundle | None) -> str:
    session = served.llm.session
    cache = _bytes_per_token(served.llm.bundle, draft) * session.slots * session.capacity
    return (
        f"{served.name} is served at {address}: {session.slots} slots of {session.capacity} tokens, "
        f"KV cache {cache / 2**20:.0f} MiB"
    )
