"""/v1/completions by OpenAI's own client, against the sum rule."""

import asyncio
import math

import pytest

from tests.runtime.serving.http.clients import openai_async_client, openai_client
from tests.runtime.serving.http.servers import VOCAB, Running, alone, spoken

# Of one row of logits that is 1 for one token and 0 for the others.
LIKELY = 1 - math.log(math.e + VOCAB - 1)
OTHER = -math.log(math.e + VOCAB - 1)


@pytest.fixture(scope="module")
def client(server: Running):
    with openai_client(server) as client:
        yield client


def test_a_text_is_continued(client, byte_level):
    ids = byte_level.encode("hello").ids
    found = client.completions.create(model="tiny", prompt="hello", max_tokens=6)
    expected = alone(ids, 6)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (spoken(byte_level, expected), "length", None)
    usage = (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens)
    assert usage == (len(ids), 6, len(ids) + 6)
    assert (found.model, found.object) == ("tiny", "text_completion")


def test_a_stop_token_ends_the_text_and_is_counted_but_not_shown(client, byte_level):
    prompt = [131, 133]  # their sum is the stop token 264
    found = client.completions.create(model="tiny", prompt=prompt, max_tokens=6)
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("", "stop")
    assert found.usage.completion_tokens == 1
    more = client.completions.create(model="tiny", prompt=prompt, max_tokens=3, extra_body={"ignore_eos": True})
    assert (more.usage.completion_tokens, more.choices[0].finish_reason) == (3, "length")


def test_batches_and_n_are_indexed_as_openai_does(client, byte_level):
    prompts = [[1, 2], [3, 4, 5], [6]]
    found = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=4, temperature=0)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3, 4, 5]
    expected = [spoken(byte_level, alone(prompt, 4)) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in found.choices] == expected
    assert found.usage.prompt_tokens == 6
    assert found.usage.completion_tokens == sum(2 * len(alone(prompt, 4)) for prompt in prompts)


def test_seeds_repeat_a_draw_and_n_draws_differ(client):
    def ask():
        return client.completions.create(model="tiny", prompt=[9], n=3, max_tokens=12, temperature=2, seed=-4)

    first, second = ask(), ask()
    assert [one.text for one in first.choices] == [one.text for one in second.choices]
    assert len({one.text for one in first.choices}) == 3


def test_stop_strings_end_the_text_before_them(client, byte_level):
    prompt, count = [40], 8
    whole = spoken(byte_level, alone(prompt, count, stops=()))
    stop = whole[2:4]
    found = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=count, stop=[stop, "never"], extra_body={"ignore_eos": True}
    )
    assert (found.choices[0].text, found.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")


def test_logprobs_are_those_of_the_logits(client, byte_level):
    found = client.completions.create(model="tiny", prompt=[70], max_tokens=3, logprobs=2)
    expected, logprobs = alone([70], 3), found.choices[0].logprobs
    assert logprobs.tokens == [byte_level.decode([token], skip_special_tokens=False) for token in expected]
    assert logprobs.token_logprobs == pytest.approx([LIKELY] * 3, abs=1e-5)
    assert [max(top.values()) for top in logprobs.top_logprobs] == logprobs.token_logprobs
    lengths = [len(token) for token in logprobs.tokens]
    assert logprobs.text_offset == [sum(lengths[:at]) for at in range(3)]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_is_scored_as_harnesses_ask(client, byte_level, max_tokens):
    """lm-eval's log-likelihood request: arrays with an entry per prompt token, the first without a score."""
    prompt = [66, 66, 132, 5, 3]  # the second and third are what the sum rule says
    found = client.completions.create(
        model="tiny", prompt=[prompt], max_tokens=max_tokens, temperature=0, logprobs=1, seed=1234, echo=True
    )
    (choice,) = found.choices
    answer = alone(prompt, max_tokens)
    assert choice.text == byte_level.decode(prompt, skip_special_tokens=False) + spoken(byte_level, answer)
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(
        [LIKELY, LIKELY, OTHER, OTHER, *[LIKELY] * max_tokens], abs=1e-5
    )
    greedy = [
        chosen == max(top.values())
        for chosen, top in zip(choice.logprobs.token_logprobs[1:5], choice.logprobs.top_logprobs[1:5], strict=True)
    ]
    assert greedy == [True, True, False, False]
    assert found.usage.completion_tokens == max_tokens and choice.finish_reason == "length"


def test_a_stream_has_the_same_text_and_its_usage_last(client, byte_level):
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=[[1, 2], [4]],
            max_tokens=5,
            logprobs=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    for index, prompt in enumerate([[1, 2], [4]]):
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        expected = alone(prompt, 5)
        assert "".join(one.text for one in own) == spoken(byte_level, expected)
        assert [one.finish_reason for one in own] == [None] * (len(expected) - 1) + ["length"]
        assert [value for one in own for value in one.logprobs.token_logprobs] == pytest.approx(
            [LIKELY] * len(expected), abs=1e-5
        )
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 10)


def test_many_asynchronous_clients_at_once(server, byte_level):
    async def ask_all():
        async with openai_async_client(server) as client:
            asked = (client.completions.create(model="tiny", prompt=[k, 3], max_tokens=7) for k in range(1, 21))
            return await asyncio.gather(*asked)

    found = asyncio.run(ask_all())
    assert [one.choices[0].text for one in found] == [spoken(byte_level, alone([k, 3], 7)) for k in range(1, 21)]


def test_null_is_absent_and_unknown_fields_are_ignored(server):
    body = {"model": None, "prompt": [1, 2], "max_tokens": 2}
    nulls = ("stop", "logprobs", "n", "seed", "temperature", "top_p", "stream", "stream_options", "echo", "logit_bias")
    status, found = server.post("/v1/completions", body | dict.fromkeys(nulls) | {"unheard_of": {"a": 1}})
    assert status == 200 and found["usage"]["completion_tokens"] == 2
    assert server.post("/v1/completions", {"prompt": [1], "max_tokens": None})[1]["usage"]["completion_tokens"] == 16


def test_a_reused_prefix_is_reported(start):
    server = start(slots=1)
    for cached in (0, 39):
        found = server.post("/v1/completions", {"prompt": list(range(40)), "max_tokens": 1})[1]
        assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}
