"""A real checkpoint behind the server answers as transformers does."""

from megrez.runtime.serving.llm import LLM
from tests.reference import greedy
from tests.runtime.serving.http.clients import openai_client
from tests.runtime.serving.http.servers import serving


def test_greedy_chat_is_transformers(checkpoint_of, megrez_compile, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "b"
    assert megrez_compile(checkpoint_of(), "--target", "cpu-fp32", "-o", folder, "--context", 48).code == 0
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(), local_files_only=True)
    messages = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = greedy(checkpoint_of(), ids, 12)
    with (
        serving(LLM(folder, slots=2, threads=1)) as server,
        openai_client(server) as client,
    ):
        found = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=12, temperature=0, logprobs=True, n=2
        )
    for choice in found.choices:
        assert choice.message.content == tokenizer.decode(expected, skip_special_tokens=True)
        assert len(choice.logprobs.content) == len(expected)
    assert found.usage.prompt_tokens == len(ids)
