"""Drafted tokens at the server: the same answers and streams, usage and metrics that count them."""

import json

from megrez.runtime.serving.drafting.lookup import PromptLookup
from megrez.runtime.serving.drafting.speculation import Speculation
from tests.runtime.serving.http.servers import Echo, fake_llm, serving

# Echo answers with the message, which prompt lookup finds in the prompt.
SAID = "the quick brown fox jumps over the lazy dog and the quick brown cat"
ASKED = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 100, "temperature": 0}


def test_usage_and_metrics_count_drafted_tokens(folder):
    speculation = Speculation(PromptLookup(), is_adaptive=False)
    with serving(fake_llm(folder, Echo, capacity=1200, speculation=speculation)) as server:
        status, found = server.post("/v1/chat/completions", ASKED)
        assert status == 200 and found["choices"][0]["message"]["content"] == SAID
        details = found["usage"]["completion_tokens_details"]
        accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
        assert found["usage"]["completion_tokens"] > accepted > len(SAID) / 2
        assert server.metric("vllm:spec_decode_num_accepted_tokens_total") == accepted
        assert server.metric("vllm:spec_decode_num_draft_tokens_total") == accepted + rejected
        assert 1 <= server.metric("vllm:spec_decode_num_drafts_total") < accepted / 3
        assert server.metric("vllm:generation_tokens_total") == found["usage"]["completion_tokens"]


def test_a_stream_has_every_token_in_order(folder):
    speculation = Speculation(PromptLookup(), is_adaptive=False)
    with serving(fake_llm(folder, Echo, capacity=1200, speculation=speculation)) as server:
        body = ASKED | {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
        raw = server.get_stream("/v1/chat/completions", body)
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    parts = [choice for event in events for choice in event["choices"]]
    assert "".join(part["delta"].get("content") or "" for part in parts) == SAID
    counted = sum(len((part.get("logprobs") or {}).get("content") or ()) for part in parts)
    usage = events[-1]["usage"]
    assert usage["completion_tokens"] == counted > usage["completion_tokens_details"]["accepted_prediction_tokens"] > 30


def test_without_drafts_usage_does_not_mention_them(folder):
    with serving(fake_llm(folder, Echo, capacity=1200)) as server:
        found = server.post("/v1/chat/completions", ASKED)[1]
        assert found["choices"][0]["message"]["content"] == SAID
        assert "completion_tokens_details" not in found["usage"]
        assert "spec_decode" not in server.get("/metrics")[1]
