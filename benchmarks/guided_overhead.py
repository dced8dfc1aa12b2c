"""What guided output costs per token: the mask's computation and its application, at Megrez-3B's vocabulary.

    python benchmarks/guided_overhead.py [--vocab 122880] [--answers 20]

The tokenizer is synthetic: every byte, then random letters, digits and JSON punctuation up to --vocab. The computation
runs beside the engine's step; only what it exceeds the step by, and the application, delay a token.
"""

import argparse
import json
import random
import time

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megrez.runtime.guided import Guided
from megrez.runtime.sampling import Sampler, SamplingParams
from megrez.runtime.serving.guided import GuidedCompiler

EOS = "<|turn_end|>"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "note": {"type": "string", "maxLength": 60},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
CASES = {
    "schema": Guided(json_schema=PERSON),
    "json_object": Guided(json_object=True),
    "regex": Guided(regex=r"[A-Za-z]{3,40}-\d{1,20}"),
    "choice": Guided(choice=["positive", "negative", "neutral"]),
}


def synthetic_tokenizer(count: int) -> Tokenizer:
    source = random.Random(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys(alphabet)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    while len(words) < count - 1:
        kind = source.random()
        characters = letters if kind < 0.85 else "0123456789" if kind < 0.9 else '{}[]":,Ġ'
        words["Ġ" * source.randrange(2) + "".join(source.choices(characters, k=source.randrange(2, 9)))] = None
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    return tokenizer


def measure(compiler: GuidedCompiler, guided: Guided, vocab: int, answers: int, stop: int) -> dict[str, object]:
    """Microseconds per token. Answers are random allowed tokens."""
    generator = np.random.default_rng(0)
    computed, applied, picked = [], [], []
    begin = time.perf_counter()
    grammar = compiler.compile(guided)
    compile_ms = (time.perf_counter() - begin) * 1e3
    params = SamplingParams()
    for _ in range(answers):
        sampler, start = Sampler(params, [0], vocab), time.perf_counter()
        matcher = grammar.matcher()
        for _ in range(120):
            matcher.allowed()  # waits for the mask
            computed.append(time.perf_counter() - start)
            start = time.perf_counter()
            allowed = matcher.allowed()
            applied.append(time.perf_counter() - start)
            logits = generator.standard_normal(vocab, np.float32)
            start = time.perf_counter()
            token = sampler.pick(logits, allowed=allowed)
            picked.append(time.perf_counter() - start)
            start = time.perf_counter()
            if token == stop or matcher.push(token):
                break
    parts = {"compute": computed, "unpack": applied, "where and argmax": picked}
    found = {
        name: {f"p{at}_us": round(float(np.percentile(seconds, at)) * 1e6, 1) for at in (50, 99)}
        for name, seconds in parts.items()
    }
    return {"compile_ms": round(compile_ms, 2), "tokens": len(computed), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=122_880)
    parser.add_argument("--answers", type=int, default=20)
    options = parser.parse_args()
    tokenizer = synthetic_tokenizer(options.vocab)
    stop = tokenizer.token_to_id(EOS)
    begin = time.perf_counter()
    compiler = GuidedCompiler(tokenizer.to_str(), vocab_size=options.vocab, stop_ids=(stop,))
    print(json.dumps({"open_s": round(time.perf_counter() - begin, 2), "vocab": options.vocab}))
    for name, guided in CASES.items():
        print(json.dumps({name: measure(compiler, guided, options.vocab, options.answers, stop)}))
    compiler.close()


if __name__ == "__main__":
    main()
