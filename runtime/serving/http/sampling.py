"""SamplingParams from a body, with OpenAI's names and vLLM's beside them."""

import dataclasses
from typing import Any

from megrez.runtime.errors import UsageError
from megrez.runtime.sampling import MOST_LOGPROBS, SamplingParams
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields

MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_CHOICES = 64
SEED_LIMIT = 2**63 - 1
MOST_DIGITS = 9


def read_sampling(
    fields: Fields, defaults: SamplingParams, *, max_tokens: int | None, vocab_size: int, stop_field: str = "stop"
) -> SamplingParams:
    """Absent fields have the model's recommended values. max_tokens: None generates to the end of the context.

    Raises ApiError that names the field at fault.
    """
    given: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": _positive(fields, "top_p"),
        "top_k": fields.integer("top_k", -1),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "seed": fields.integer("seed", -SEED_LIMIT - 1, SEED_LIMIT),
        "n": fields.integer("n", 1, MOST_CHOICES),
        "min_tokens": fields.integer("min_tokens", 0),
        "logit_bias": _logit_bias(fields, vocab_size),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if "seed" in given:
        given["seed"] %= 2**63  # OpenAI's seeds may be negative
    if "top_k" in given:
        given["top_k"] = max(given["top_k"], 0)  # -1 is vLLM's "off"
    try:
        return dataclasses.replace(
            defaults,
            **given,
            max_tokens=max_tokens,
            stop=_stops(fields, stop_field),
            stop_token_ids=_token_ids(fields, "stop_token_ids", vocab_size),
            ignore_eos=fields.flag("ignore_eos"),
        )
    except UsageError as error:
        raise ApiError(str(error)) from error


def _positive(fields: Fields, name: str) -> float | None:
    value = fields.number(name, 0, 1)
    if value == 0:
        return 1e-9  # OpenAI takes 0 for the likeliest token alone
    return value


def _stops(fields: Fields, name: str) -> tuple[str, ...]:
    stops = fields.texts(name, MOST_STOPS)
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise ApiError(f"{name} has a string of more than {LONGEST_STOP} characters: give shorter ones", param=name)
    return stops


def _token_ids(fields: Fields, name: str, vocab_size: int) -> tuple[int, ...]:
    ids = fields.ids(name)
    if not all(0 <= token < vocab_size for token in ids):
        raise fields.fault(name, f"a list of token ids of 0 to {vocab_size - 1}")
    return ids


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float] | None:
    bias = fields.fields("logit_bias")
    if bias is None:
        return None
    found: dict[int, float] = {}
    for name in bias.data:
        value = bias.number(name, -100, 100)
        if not name.isdecimal() or len(name) > MOST_DIGITS or int(name) >= vocab_size or value is None:
            message = f"logit_bias must map token ids of 0 to {vocab_size - 1} to numbers, found {name[:20]!r}"
            raise ApiError(message, param="logit_bias")
        found[int(name)] = value
    return found


def read_top_logprobs(fields: Fields, name: str) -> int | None:
    return fields.integer(name, 0, MOST_LOGPROBS)
