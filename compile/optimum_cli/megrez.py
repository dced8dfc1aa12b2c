"""`optimum-cli export megrez`: megrez-compile as an exporter of optimum.

Installed as optimum.commands.register.megrez, a namespace package that optimum-cli searches: it must not have an
__init__.py. Parses arguments and calls megrez-compile.
"""

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class MegrezExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    COMMAND = CommandInfo(name="megrez", help="Compile a Llama-GQA model into a bundle that `megrez run` opens.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Hugging Face folder or hub id, or a .gguf file.")
        parser.add_argument(
            "--target", default="cpu-fp32", help="Target, see megrez-compile --list-targets.  [default: cpu-fp32]"
        )
        parser.add_argument("--context", help="Tokens of prompt and answer together.  [default: 4096, for NPUs 1024]")
        parser.add_argument("output", help="The bundle's folder.")

    def run(self) -> None:
        from megrez.compile.cli import compile_command
        from megrez.runtime.console import run_cli

        options = [self.args.model, "--target", self.args.target, "-o", self.args.output]
        if self.args.context is not None:
            options += ["--context", self.args.context]
        run_cli(compile_command, options)


REGISTER_COMMANDS = [(MegrezExportCommand, ExportCommand)]
