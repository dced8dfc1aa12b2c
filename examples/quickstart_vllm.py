"""The model card's third quick start, with vLLM's names: many conversations at once; only the import differs.

megrez-compile Infinigence/Megrez-3B-Instruct --target cpu-int4 -o megrez-3b
python examples/quickstart_vllm.py megrez-3b
"""

import sys

from megrez.runtime import LLM, SamplingParams


def main(model: str) -> None:
    questions = ["讲讲黄焖鸡的做法。", "Which planet has the most moons?"]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    sampling_params = SamplingParams(top_p=0.9, temperature=0.2, max_tokens=1024, repetition_penalty=1.02)
    with LLM(model) as llm:
        for question, output in zip(questions, llm.chat(conversations, sampling_params), strict=True):
            print(f"> {question}\n{output.outputs[0].text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
