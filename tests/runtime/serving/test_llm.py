"""Many requests from many threads, over a session whose next token is the sum of the context."""

import asyncio
import threading
import time

import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.runner import QueueFullError
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Text

VOCAB = 267
USER = [{"role": "user", "content": "hi"}]


class Slow(FakeSession):
    def step(self, *batch, **named):
        time.sleep(0.002)
        return super().step(*batch, **named)


@pytest.fixture
def serve(make_bundle, byte_level, megrez_template):
    opened: list[LLM] = []

    def build(*, slots=2, capacity=400, queue_limit=None, session=FakeSession):
        folder = opened[0].bundle.path if opened else make_bundle(tokenizer=byte_level, template=megrez_template)
        bundle = open_bundle(folder)
        text = Text.open(bundle)
        template = ChatTemplate.open(bundle, text)
        one = LLM.over(
            bundle, session(vocab_size=VOCAB, capacity=capacity, slots=slots), text, template, queue_limit=queue_limit
        )
        opened.append(one)
        return one

    yield build
    for one in opened:
        one.close()


def alone(prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(sum(ids) % VOCAB)
    return tuple(ids[len(prompt) :])


def test_prompts_are_answered_in_their_order_with_vllms_names(serve):
    llm = serve()
    prompts = [[1, 2], "hello", [5] * 20, [9]]
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    found = llm.generate(prompts, params)
    assert [one.prompt for one in found] == [None, "hello", None, None]
    for one in found:
        (output,) = one.outputs
        assert output.token_ids == alone(one.prompt_token_ids, 4)
        assert output.text == llm.text.decode(output.token_ids)
        assert (output.index, output.finish_reason, output.logprobs, one.finished) == (0, "length", None, True)


def test_one_prompt_and_params_for_each(serve):
    llm = serve()
    (one,) = llm.generate([3, 4], SamplingParams(max_tokens=2, ignore_eos=True))
    assert one.outputs[0].token_ids == alone([3, 4], 2)
    counts = [
        len(found.outputs[0].token_ids)
        for found in llm.generate([[1], [2]], [SamplingParams(max_tokens=count, ignore_eos=True) for count in (1, 3)])
    ]
    assert counts == [1, 3]
    with pytest.raises(UsageError, match="2 prompts came with 1 sampling params"):
        llm.generate([[1], [2]], [SamplingParams()])


def test_chat_goes_through_the_template(serve):
    llm = serve()
    (one,) = llm.chat(USER, SamplingParams(max_tokens=3, ignore_eos=True))
    assert llm.text.decode(one.prompt_token_ids).endswith("hi<|turn_end|><|role_start|>assistant<|role_end|>")
    assert one.outputs[0].token_ids == alone(one.prompt_token_ids, 3)
    assert [len(found.outputs) for found in llm.chat([USER, USER], SamplingParams(n=2, max_tokens=2))] == [2, 2]


def test_threads_get_what_they_get_alone(serve):
    llm = serve(slots=3)
    wrong: list[object] = []

    def ask(number):
        for turn in range(5):
            prompt = [number, turn, 7]
            (one,) = llm.generate([prompt], SamplingParams(max_tokens=6, ignore_eos=True))
            if one.outputs[0].token_ids != alone(prompt, 6):
                wrong.append((number, turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads) and wrong == []


def test_a_stream_that_is_left_frees_its_slot(serve):
    llm = serve(slots=1, session=Slow)

    async def leave():
        tokens = llm.stream([1, 2], SamplingParams(ignore_eos=True))
        first = await anext(tokens)
        await tokens.aclose()
        return first.token

    assert asyncio.run(leave()) == 3
    (one,) = llm.generate([[5]], SamplingParams(max_tokens=1))
    assert one.outputs[0].token_ids == (5,)
    assert llm.load() == (0, 0, 0)


def test_a_stream_gives_tokens_as_they_come(serve):
    llm = serve()

    async def read():
        return [token.token async for token in llm.stream(USER, SamplingParams(max_tokens=5, ignore_eos=True))]

    assert asyncio.run(read()) == list(alone(llm.encode_chat(USER), 5))


def test_as_many_requests_wait_as_may(serve):
    llm = serve(slots=1, queue_limit=2, session=Slow)
    running = llm.submit([1], SamplingParams(ignore_eos=True), lambda found: None)
    deadline = time.monotonic() + 30
    while llm.load()[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    waiting = [llm.submit([2], SamplingParams(ignore_eos=True), lambda found: None) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        llm.submit([3], SamplingParams(), lambda found: None)
    for request in (running, *waiting):
        llm.cancel(request)


def test_closing_tells_whoever_is_not_finished(serve):
    llm = serve(slots=1, session=Slow)
    heard: list[object] = []
    for _ in range(2):
        llm.submit([1], SamplingParams(ignore_eos=True), heard.append)
    llm.close()
    llm.close()
    assert sum(isinstance(found, EngineError) for found in heard) == 2
    with pytest.raises(UsageError, match="was closed"):
        llm.generate([[1]])


def test_a_wrong_prompt_among_others_is_refused_and_the_others_are_dropped(serve):
    llm = serve()
    with pytest.raises(UsageError, match="outside the model's vocabulary"):
        llm.generate([[1], [VOCAB]])
    deadline = time.monotonic() + 30
    while llm.load() != (0, 0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert llm.load() == (0, 0, 0)


def test_guided_output_is_honoured_or_refused_where_it_is_asked_for(serve):
    pytest.importorskip("llguidance")
    llm = serve()
    params = [SamplingParams(guided=Guided(choice=["yes", "no"])), SamplingParams(max_tokens=4, ignore_eos=True)]
    guided, free = llm.generate([[1, 2], [1, 2]], params)
    assert guided.outputs[0].text in ("yes", "no") and guided.outputs[0].finish_reason == "stop"
    assert free.outputs[0].token_ids == alone([1, 2], 4)
    with pytest.raises(UsageError, match="uniqueItems"):
        llm.submit([1], SamplingParams(guided=Guided(json_schema={"uniqueItems": True})), print)
    assert llm.load() == (0, 0, 0)
