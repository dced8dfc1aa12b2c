import ctypes
import random
import sys

import pytest
from tokenizers import Tokenizer

from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import Tokens
from megrez.runtime.text import Detokenizer, Text

NO_BOS = Tokens(bos=None, pad=None, stop=(), add_bos=False)
WITH_BOS = Tokens(bos=1, pad=None, stop=(2,), add_bos=True)
SAMPLES = ["hello world", " leading", "naïve 你好，世界", "🏳️‍🌈 flag", "a  b\n\tc", "안녕 мир", ""]


def streamed(text: Text, ids: list[int], prompt_ids: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(text, prompt_ids or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_streamed_text_is_the_decoded_text_and_never_half_a_character(request, kind, sample):
    text = Text(request.getfixturevalue(kind), NO_BOS)
    pieces = streamed(text, text.encode(sample))
    assert "".join(pieces) == sample
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_each_character_comes_with_its_last_byte(request, kind):
    text = Text(request.getfixturevalue(kind), NO_BOS)
    ids = text.encode("你🌈")[-7:]
    assert streamed(text, ids) == ["", "", "你", "", "", "", "🌈", ""]


def test_a_word_after_the_prompt_keeps_the_space_that_a_lone_decode_would_strip(byte_fallback):
    text = Text(byte_fallback, NO_BOS)
    prompt, answer = text.encode("a"), [byte_fallback.token_to_id("▁b"), byte_fallback.token_to_id("▁a")]
    assert text.decode(answer) == "b a"
    assert "".join(streamed(text, answer, prompt)) == " b a"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize(("asked", "said"), [("😀😀", "😀a"), ("你好🏳️‍🌈", "好你"), ("é" * 9, "é 😀")])
def test_a_prompt_cut_within_a_character_does_not_spoil_the_answer(request, kind, asked, said):
    text = Text(request.getfixturevalue(kind), NO_BOS)
    whole, prompt = text.encode(asked + said), text.encode(asked)
    assert whole[: len(prompt)] == prompt
    pieces = streamed(text, whole[len(prompt) :], prompt)
    assert "".join(pieces) == said and not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_shows_as_a_replacement(byte_level):
    text = Text(byte_level, NO_BOS)
    assert "".join(streamed(text, text.encode("hi你")[:-1])) == "hi\ufffd"


def test_byte_fallback_garbage_after_a_character_does_not_eat_it(byte_fallback):
    text = Text(byte_fallback, NO_BOS)
    junk, dot = byte_fallback.token_to_id("<0xE4>"), byte_fallback.token_to_id(".")
    pieces = streamed(text, [*text.encode("你")[1:], junk, dot])
    assert "".join(pieces) == "你\ufffd."


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_any_bytes_at_all_stream_with_a_bounded_delay(request, kind):
    text = Text(request.getfixturevalue(kind), NO_BOS)
    offset = 0 if kind == "byte_level" else 3
    dice = random.Random(0)
    for _ in range(200):
        ids = [offset + dice.randrange(256) for _ in range(80)]
        pieces = streamed(text, ids)
        silent = max(len(run) for run in "".join("." if piece else " " for piece in pieces).split("."))
        assert silent <= 32
        assert "".join(pieces)


def test_bytes_that_never_become_a_character_are_held_only_as_long_as_one_could_be(byte_level):
    invalid = byte_level.token_to_id("ÿ")
    pieces = streamed(Text(byte_level, NO_BOS), [invalid] * 6)
    assert pieces == ["", "", "", "\ufffd", "\ufffd", "\ufffd", "\ufffd" * 3]


def test_long_byte_level_garbage_is_what_a_whole_decode_gives(byte_level):
    text = Text(byte_level, NO_BOS)
    dice = random.Random(1)
    for _ in range(200):
        ids = [dice.randrange(256) for _ in range(40)]
        assert "".join(streamed(text, ids)) == text.decode(ids)


def test_function_tokens_are_shown(byte_level):
    text = Text(byte_level, NO_BOS)
    call = '<|function_start|>{"name": "f"}<|function_end|>'
    ids = text.encode(call)
    assert ids[0] == byte_level.token_to_id("<|function_start|>")
    assert "".join(streamed(text, ids)) == call


def test_bos_leads_once(byte_fallback):
    text = Text(byte_fallback, WITH_BOS)
    plain = text.encode("a", add_bos=False)
    assert text.encode("a") == [1, *plain]
    assert text.encode("<s>a")[:2].count(1) == 1
    assert text.encode("<s>a", add_bos=False)[0] == 1


def test_a_post_processor_does_not_add_a_second_bos(byte_fallback):
    from tokenizers.processors import TemplateProcessing

    byte_fallback.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    ids = Text(byte_fallback, WITH_BOS).encode("a b")
    assert ids[0] == 1 and ids.count(1) == 1 and 2 not in ids


def test_truncation_and_padding_left_in_the_file_do_not_touch_a_prompt(byte_level):
    byte_level.enable_truncation(3)
    byte_level.enable_padding(length=20)
    assert len(Text(byte_level, NO_BOS).encode("abcdefg")) == 7


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="needs glibc's count of what is allocated",
)
def test_the_words_of_texts_that_are_gone_are_gone_too(byte_level):
    """A tokenizer's own cache would keep 20 KB of these."""
    saved, words = byte_level.to_str(), " ".join(f"word{at}" for at in range(100))
    for rounds in (5, 50):  # some things are made only once
        before = allocated_bytes()
        for _ in range(rounds):
            Text(Tokenizer.from_str(saved), NO_BOS).encode(words)
    assert allocated_bytes() - before < 200_000


def allocated_bytes() -> int:
    """What malloc has handed out, of blocks below its threshold for mmap: `uordblks` of mallinfo2."""
    fields = ctypes.c_size_t * 10
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [("fields", fields)]})
    return int(mallinfo2().fields[7])


def test_a_lone_surrogate_is_a_usage_error(byte_level):
    with pytest.raises(UsageError, match="Unicode"):
        Text(byte_level, NO_BOS).encode("bad \udcff")


def test_open_reads_the_bundles_tokenizer(make_bundle, byte_level):
    text = Text.open(open_bundle(make_bundle(tokenizer=byte_level)))
    assert text.decode(text.encode("hello")) == "hello"
    assert text.token_text(264) == "<|turn_end|>"
    assert text.token_text(None) is None


def test_a_bundle_without_a_tokenizer_is_refused(make_bundle):
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        Text.open(open_bundle(make_bundle()))


def test_a_damaged_tokenizer_is_refused(make_bundle, byte_level, monkeypatch):
    bundle = open_bundle(make_bundle(tokenizer=byte_level))
    (bundle.path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(BundleError, match="cannot be read"):
        Text.open(bundle)


def test_the_fixtures_ids_are_what_these_tests_assume(byte_level: Tokenizer):
    assert [byte_level.token_to_id(word) for word in ("<|eos|>", "<|turn_end|>")] == [261, 264]
