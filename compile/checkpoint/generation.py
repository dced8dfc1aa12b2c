"""The sampling of generation_config.json, as transformers' generate reads it; knows no tokenizer."""

import math
from dataclasses import replace
from typing import Any

from megrez.compile.checkpoint.text_assets import GREEDY
from megrez.runtime.errors import CheckpointError
from megrez.runtime.manifest import SamplingDefaults

GENERATION = "generation_config.json"
# Options of generate that the runtime does not support, each with the values besides null that disable it. Those of
# SAMPLERS_OFF have an effect only with do_sample.
OFF: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "dola_layers": (),
    "stop_strings": ([], ""),
}
SAMPLERS_OFF: dict[str, tuple[object, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
SHOWN = 40


def read_sampling(generation: dict[str, Any], *, source: str = GENERATION) -> SamplingDefaults:
    """The sampling of generation_config.json, or of the file `source`.

    As in generate, sampling is greedy without do_sample whatever the temperature; the repetition penalty always
    applies. Missing keys have generate's defaults; a top_p of 0 keeps the most probable token. CheckpointError for
    a value that is not a number or out of range.
    """

    def number(key: str, default: float) -> float:
        return _number(generation, key, default, source)

    penalty = number("repetition_penalty", 1.0) or 1.0
    if generation.get("do_sample") is not True:
        return _usable(replace(GREEDY, repetition_penalty=penalty), source)
    top_k, top_p = max(int(number("top_k", 50)), 0), number("top_p", 1.0)
    found = SamplingDefaults(
        temperature=number("temperature", 1.0),
        top_k=top_k if top_p else 1,
        top_p=top_p or 1.0,
        min_p=number("min_p", 0.0),
        repetition_penalty=penalty,
    )
    return _usable(found, source)


def ignored_keys(generation: dict[str, Any]) -> tuple[str, ...]:
    """Each enabled option that the runtime does not support, with its value: "no_repeat_ngram_size 3"."""
    off = {**OFF, **(SAMPLERS_OFF if generation.get("do_sample") is True else {})}
    found = {key: generation[key] for key in off if generation.get(key) is not None}
    return tuple(f"{key} {_shown(value)}" for key, value in found.items() if value not in off[key])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _number(generation: dict[str, Any], key: str, default: float, source: str) -> float:
    value = generation.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{source}: {key} is {value!r}, not a number: repair it or remove it")
    return float(value)


def _usable(found: SamplingDefaults, source: str) -> SamplingDefaults:
    if faults := found.faults():
        raise CheckpointError(f"{source}: {', '.join(faults)}, which sampling cannot use: repair it or remove it")
    return found
