import json

import pytest

from megrez.runtime.bench.dataset import Sample, read_dataset
from megrez.runtime.errors import UsageError

TALK = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}, {"from": "human", "value": "More?"}]


@pytest.fixture
def write(tmp_path):
    def made(text: str):
        (tmp_path / "d.jsonl").write_text(text, encoding="utf-8")
        return tmp_path / "d.jsonl"

    return made


def test_lines_of_prompts(write):
    found = read_dataset(write('{"prompt": "a你"}\n\n{"prompt": "b", "output_tokens": 7, "other": 1}\n'))
    assert found == [Sample(prompt="a你"), Sample(prompt="b", output_tokens=7)]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_conversations_give_their_first_question_and_its_answer(write, form):
    items = [
        {"id": "1", "conversations": TALK},
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "Why?"}]},
        {"conversations": [{"from": "gpt", "value": "Nobody asked."}]},
    ]
    text = json.dumps(items) if form == "array" else "\n".join(map(json.dumps, items))
    assert read_dataset(write(text)) == [Sample(prompt="Hi?", answer="Hello."), Sample(prompt="Why?")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\nnot json', "line 2 is not JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', "line 2 has no prompt"),
        ('{"prompt": ""}', "line 1 has no prompt"),
        ("[1]", "item 1 has no prompt"),
        ('{"prompt": "a", "output_tokens": 0}', "output_tokens 0"),
        ('{"prompt": "a", "output_tokens": true}', "output_tokens True"),
        ('{"conversations": [{"from": "human"}]}', "a turn without a value"),
        ("\n", "has no prompt"),
        ('{"a":' * 100_000, "is not JSON"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(write, text, said):
    with pytest.raises(UsageError, match=said) as found:
        read_dataset(write(text))
    assert "\n" not in str(found.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_dataset(path)
