"""Requests to an LLM whose session takes exactly a quarter of a second per step, by its own clock."""

import asyncio

import numpy as np
import pytest

from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.local import LocalClient, MeteredSession, Steps
from megrez.runtime.bench.work import Work
from megrez.runtime.bench.workload import Ask
from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.serving.llm import LLM
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Text


class Timed(FakeSession):
    now = 64.0

    def step(self, *batch, **named):
        self.now += 0.25
        return super().step(*batch, **named)


@pytest.fixture
def opened(make_bundle, byte_level, megrez_template):
    session = Timed(vocab_size=267, capacity=300, slots=2)
    bundle = open_bundle(make_bundle(tokenizer=byte_level, template=megrez_template))
    text = Text.open(bundle)
    with LLM.over(bundle, session, text, ChatTemplate.open(bundle, text)) as llm:
        yield llm, session


def client(opened, **options) -> LocalClient:
    llm, session = opened
    chosen = {"temperature": 0.0, "ignore_eos": True, "chat": False, **options}
    return LocalClient(llm, clock=lambda: session.now, **chosen)


def sent(one: LocalClient, *asks: Ask) -> list[Record]:
    async def go():
        return await asyncio.gather(*(one.send(ask) for ask in asks))

    return asyncio.run(go())


def test_a_request_is_timed_by_the_steps_that_answered_it(opened):
    (found,) = sent(client(opened), Ask(prompt=[1, 2, 3], output_tokens=4))
    assert found == Record(
        sent=64.0,
        done=65.0,
        times=(64.25, 64.5, 64.75, 65.0),
        prompt_tokens=3,
        output_tokens=4,
        cached_tokens=0,
    )


def test_cached_tokens_are_noted(opened):
    prompt = list(range(1, 40))
    first, again = (sent(client(opened), Ask(prompt=prompt, output_tokens=1))[0] for _ in range(2))
    assert (first.cached_tokens, again.cached_tokens) == (0, 38)  # the last token's logits are computed again


def test_a_text_is_encoded_and_a_chat_rendered(opened, byte_level):
    plain, chat = client(opened), client(opened, chat=True)
    assert plain.prompt_ids(Ask(prompt="hi you", output_tokens=1)) == byte_level.encode("hi you").ids
    rendered = chat.prompt_ids(Ask(prompt="hi", output_tokens=1))
    assert byte_level.decode(rendered, skip_special_tokens=False).endswith(
        "<|role_start|>user<|role_end|>hi<|turn_end|><|role_start|>assistant<|role_end|>"
    )


def test_a_stop_token_ends_an_answer_unless_it_is_ignored(opened):
    ask = Ask(prompt=[200, 64], output_tokens=3)  # the sum, 264, is a stop token
    assert [sent(client(opened, ignore_eos=flag), ask)[0].output_tokens for flag in (False, True)] == [1, 3]


def test_a_prompt_that_does_not_fit_is_a_failed_request(opened):
    (found,) = sent(client(opened), Ask(prompt=[1] * 301, output_tokens=4))
    assert found.error is not None and "the context holds 300" in found.error


def test_an_engine_that_fails_is_a_failed_request(opened):
    _, session = opened
    session.copy = session.step = lambda *batch, **named: 1 / 0
    (found,) = sent(client(opened), Ask(prompt=[1, 2], output_tokens=4))
    assert found.error is not None and found.output_tokens == 0


def test_a_request_that_is_given_up_is_cancelled(opened):
    llm, _ = opened

    async def go():
        task = asyncio.create_task(client(opened).send(Ask(prompt=[1, 2], output_tokens=250)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert sent(client(opened), Ask(prompt=[5], output_tokens=2))[0].output_tokens == 2
    assert llm.load() == (0, 0, 0)


def test_a_metered_session_sums_up_its_decode_steps():
    inner = Timed(vocab_size=50, slots=3)
    metered = MeteredSession(session=inner, clock=lambda: inner.now)
    assert (metered.slots, metered.capacity, metered.vocab_size) == (3, 64, 50)
    logits = metered.step([1, 2, 3, 4], [0], [3], slots=[2])
    assert np.argmax(logits) == 10
    metered.step([9, 9], [4, 0], [0, 1], slots=[2, 0], counts=[1, 1])
    metered.step([9, 8, 7], [5, 1], [0, 2], slots=[2, 0], counts=[1, 2])  # a prompt beside a decoding sequence
    decode = Work(steps=1, seconds=0.25, sequences=2, tokens=2, cached_tokens=6, pairs=6, logits=2)
    # Prompts of 4 tokens at 0 and of 2 at 1, and a token that attends to 6.
    prefill = Work(steps=2, seconds=0.5, sequences=3, tokens=7, cached_tokens=13, pairs=10 + 5 + 6, logits=3)
    assert metered.total == Steps(decode=decode, prefill=prefill, busy_tokens=9)
    metered.copy(2, 1, 3)
    assert inner.cache[1, :3].tolist() == [1, 2, 3]
    metered.reset()
    assert metered.total == Steps()
