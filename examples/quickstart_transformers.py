"""The model card's first quick start: one conversation, one answer. transformers is not needed.

megrez-compile Infinigence/Megrez-3B-Instruct --target cpu-int4 -o megrez-3b
python examples/quickstart_transformers.py megrez-3b
"""

import sys

from megrez.runtime import Model, SamplingParams


def main(bundle: str) -> None:
    messages = [{"role": "user", "content": "讲讲黄焖鸡的做法。"}]
    params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=1024)
    with Model.open(bundle) as model:
        print(model.generate(messages, params).text)


if __name__ == "__main__":
    main(*sys.argv[1:])
