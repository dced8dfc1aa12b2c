"""The `megrez` command: a table of verbs, each imported on use."""

import sys

from megrez.runtime.console import Verb, VerbGroup, run_cli
from megrez.runtime.huge_pages import restart_with_huge_pages

VERBS = {
    "run": Verb(target="megrez.runtime.commands.run:run_command", help="Answer one prompt."),
    "chat": Verb(target="megrez.runtime.commands.chat:chat_command", help="Hold a conversation."),
    "serve": Verb(
        target="megrez.runtime.commands.serve:serve_command",
        help="Serve OpenAI's and Anthropic's HTTP interfaces.",
        extra="serve",
    ),
    "bench": Verb(target="megrez.runtime.commands.bench:bench_command", help="Measure speed and memory."),
    "inspect": Verb(
        target="megrez.runtime.commands.inspect:inspect_command",
        help="Show what a bundle contains and how it was made.",
    ),
    "capi": Verb(target="megrez.runtime.commands.capi:capi_command", help="Show where the C API's files are."),
    "bundle-runtime": Verb(
        target="megrez.runtime.commands.bundle_runtime:bundle_runtime_command",
        help="Write a folder that runs bundles where there is no Python.",
    ),
    "doctor": Verb(
        target="megrez.compile.commands.doctor:doctor_command", help="Show what this machine can compile for and run."
    ),
    "eval": Verb(
        target="megrez.compile.commands.evaluate:eval_command",
        help="Measure a bundle's perplexity, or its fidelity to its checkpoint.",
        extra="export",
    ),
    "calibrate": Verb(
        target="megrez.compile.commands.calibrate:calibrate_command",
        help="Calibrate a checkpoint and write its scales.",
        extra="export",
    ),
}
# Verbs that decode for long. Huge pages can make opening a bundle slower, which does not pay off for a single answer.
LONG_RUNNING = frozenset({"chat", "bench", "serve"})


def program() -> None:
    """The entry point of the installed command. It may restart its process: other programs call `main`."""
    if LONG_RUNNING.intersection(sys.argv[1:2]):
        restart_with_huge_pages()
    main()


def main() -> None:
    run_cli(VerbGroup("megrez", VERBS, help="Run the bundles that megrez-compile writes."))
