"""The model card's second quick start: the folder that ModelScope downloads is compiled, and answers.

modelscope download --model InfiniAI/Megrez-3B-Instruct --local_dir megrez-folder
python examples/quickstart_modelscope.py megrez-folder megrez-3b cpu-int4
"""

import sys
from pathlib import Path

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.commands.console_report import ConsoleReport
from megrez.compile.pipeline import Request, compile_bundle
from megrez.engines.targets import find_target
from megrez.runtime import Model, SamplingParams


def main(folder: str, bundle: str, target: str = "cpu-int4", context: int = 4096) -> None:
    if not Path(bundle).exists():
        checkpoint = open_checkpoint(folder)
        request = Request(checkpoint=checkpoint, target=find_target(target), output=Path(bundle), context=context)
        compile_bundle(request, ConsoleReport())
    messages = [{"role": "user", "content": "讲讲黄焖鸡的做法。"}]
    with Model.open(bundle) as model:
        for piece in model.stream(messages, SamplingParams(temperature=0.7, top_p=0.9, max_tokens=1024)):
            print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    folder, bundle, *target = sys.argv[1:]
    main(folder, bundle, *target)
