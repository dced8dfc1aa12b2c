"""Function calls: read from text however it is cut, written into prompts, and enforced on random models."""

import json
import random
from typing import Any

import numpy as np
import pytest

from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.guided import GuidedCompiler
from megrez.runtime.serving.tools.choice import guided_by_tools
from megrez.runtime.serving.tools.formats import GENERIC, HERMES, LLAMA3, MEGREZ, ToolFormat, choose_format
from megrez.runtime.serving.tools.parser import ArgumentsDelta, CallStart, Delta, TextDelta, ToolParser, joined
from megrez.runtime.serving.tools.prompt import INTRODUCTION, render_with_tools
from megrez.runtime.text import Text
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer, plain_manifest

CITY = {"type": "object", "properties": {"city": {"enum": ["北京", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Sky", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def read(tool_format: ToolFormat, pieces: list[str], names: list[str] | None = None) -> list[Delta]:
    parser = ToolParser(tool_format, names)
    return joined([delta for piece in pieces for delta in parser.push(piece)] + parser.flush())


def simple(deltas: list[Delta]) -> list[Any]:
    """Text as itself, calls as [index, name, arguments]."""
    found: list[Any] = []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            found.append(delta.text)
        elif isinstance(delta, CallStart):
            found.append([delta.index, delta.name, ""])
        else:
            assert isinstance(delta, ArgumentsDelta) and found[-1][0] == delta.index
            found[-1][2] += delta.text
    return found


def megrez(body: str) -> str:
    return f"<|function_start|>{body}<|function_end|>"


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


A = '{"name": "weather", "arguments": {"city": "Rome", "deep": [{"a": "}<|function_end|>\\""}]}}'
A_ARGUMENTS = '{"city": "Rome", "deep": [{"a": "}<|function_end|>\\""}]}'
CASES: list[tuple[ToolFormat, str, list[Any]]] = [
    (MEGREZ, "Just text <|role < done.", ["Just text <|role < done."]),
    (MEGREZ, "", []),
    (MEGREZ, " \n", [" \n"]),
    (MEGREZ, megrez(A), [[0, "weather", A_ARGUMENTS]]),
    (
        MEGREZ,
        "Let me see.\n" + megrez(A) + "\n" + megrez('{"name":"clock","arguments":{}}') + "\n",
        ["Let me see.", [0, "weather", A_ARGUMENTS], [1, "clock", "{}"]],
    ),
    (
        MEGREZ,
        "a " + megrez('{"name":"f","arguments":{}}') + " b " + megrez('{"name":"g","arguments":{"x":1}}') + " c",
        ["a", [0, "f", "{}"], " b", [1, "g", '{"x":1}'], " c"],
    ),
    (MEGREZ, megrez('{"arguments": {"x": [1, 2]}, "name": "late"}'), [[0, "late", '{"x": [1, 2]}']]),
    (MEGREZ, megrez('{"name": "s", "arguments": "{\\"q\\": \\"caf\\u00e9 \\ud83d\\ude00\\"}"}'),
     [[0, "s", '{"q": "café 😀"}']]),
    (MEGREZ, megrez('{"name": "none"}'), [[0, "none", "{}"]]),
    (MEGREZ, megrez('{"name": "none", "arguments": null}'), [[0, "none", "{}"]]),
    (MEGREZ, megrez('{"id": 7, "name": "n", "extra": [true, {"a": 1}], "arguments": {}}'), [[0, "n", "{}"]]),
    (MEGREZ, megrez('{"name": "n", "arguments": {"é": "日"}}'), [[0, "n", '{"é": "日"}']]),
    (MEGREZ, '<|function_start|>{"name": "n", "arguments": {}}', [[0, "n", "{}"]]),
    (MEGREZ, '<|function_start|>{"name": "n", "arguments": {}} and on', [[0, "n", "{}"], " and on"]),
    (MEGREZ, '<|function_start|>{"name": "n", "arguments": {"city": "Ro', [[0, "n", '{"city": "Ro']]),
    (MEGREZ, 'x <|function_start|>{"name": "n', ["x", ' <|function_start|>{"name": "n']),
    (MEGREZ, '<|function_start|>{"arguments": {"a": 1', ['<|function_start|>{"arguments": {"a": 1']),
    (MEGREZ, megrez("not JSON"), [megrez("not JSON")]),
    (MEGREZ, megrez("[1]"), [megrez("[1]")]),
    (MEGREZ, megrez('{"name": 3, "arguments": {}}'), [megrez('{"name": 3, "arguments": {}}')]),
    (MEGREZ, megrez('{"name": "", "arguments": {}}'), [megrez('{"name": "", "arguments": {}}')]),
    (MEGREZ, megrez('{"arguments": {}}'), [megrez('{"arguments": {}}')]),
    (MEGREZ, megrez("oops") + megrez('{"name": "f", "arguments": {}}'), [megrez("oops"), [0, "f", "{}"]]),
    (MEGREZ, "<|function_start|><|function_start|>" + '{"name": "f"}', ["<|function_start|>", [0, "f", "{}"]]),
    (MEGREZ, megrez('{"name": "f" "arguments": {}}'), [[0, "f", ""], '"arguments": {}}<|function_end|>']),
    (HERMES, "Sure!\n" + hermes(A), ["Sure!", [0, "weather", A_ARGUMENTS]]),
    (HERMES, hermes(A) + "\n" + hermes(A), [[0, "weather", A_ARGUMENTS], [1, "weather", A_ARGUMENTS]]),
    (HERMES, "<<tool_call>" + '{"name": "f"}</tool_call>', ["<", [0, "f", "{}"]]),
    (HERMES, "1 < 2 and <tool> is no </tool_call>", ["1 < 2 and <tool> is no </tool_call>"]),
    (HERMES, hermes('{"name": "f"}')[:-3], [[0, "f", "{}"]]),
    (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', [[0, "f", '{"a": 1}']]),
    (LLAMA3, ' \n<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', [[0, "f", '{"a": 1}']]),
    (LLAMA3, '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [[0, "f", "{}"], [1, "g", "{}"]]),
    (LLAMA3, '{"answer": 42, "name": "f"}', ['{"answer": 42, "name": "f"}']),
    (LLAMA3, '{"name": "John", "age": 3}', ['{"name": "John", "age": 3}']),
    (LLAMA3, '{"name": "John"}', ['{"name": "John"}']),
    (LLAMA3, '{"name": "f", "parameters": {"a": "b', [[0, "f", '{"a": "b']]),
    (LLAMA3, "Text {not a call}", ["Text {not a call}"]),
    (LLAMA3, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
]  # fmt: skip


@pytest.mark.parametrize(("tool_format", "text", "wanted"), CASES)
def test_calls_and_text_are_told_apart_however_the_text_is_cut(tool_format, text, wanted) -> None:
    whole = read(tool_format, [text])
    assert _merged(simple(whole)) == _merged(wanted)
    assert read(tool_format, list(text)) == whole
    for at in range(len(text) + 1):
        assert read(tool_format, [text[:at], text[at:]]) == whole


def _merged(found: list[Any]) -> list[Any]:
    """Neighbouring texts as one."""
    merged: list[Any] = []
    for one in found:
        if merged and isinstance(one, str) and isinstance(merged[-1], str):
            merged[-1] += one
        else:
            merged.append(one)
    return merged


def test_random_noise_never_fails_and_its_cut_does_not_matter() -> None:
    source = random.Random(3)
    parts = [
        *"<{}[]\":, \\\n;x", "<|function_start|>", "<|function_end|>", "<tool_call>", "</tool_call>", '"name"', '"f"',
        '"arguments"', '"parameters"', '{"name": "f", ', '"arguments": {"a": ', "<|python_tag|>", "null", "\\u00", "é",
    ]  # fmt: skip
    calls = 0
    for _ in range(600):
        text = "".join(source.choices(parts, k=source.randrange(1, 14)))
        for tool_format in (MEGREZ, HERMES, LLAMA3):
            whole = read(tool_format, [text])
            calls += any(isinstance(one, CallStart) for one in whole)
            assert read(tool_format, list(text)) == whole
            at = source.randrange(len(text) + 1)
            assert read(tool_format, [text[:at], text[at:]]) == whole
    assert calls > 10


def test_names_and_arguments_stream_as_they_come() -> None:
    parser = ToolParser(MEGREZ)
    assert parser.push('<|function_start|>{"name": "wea') == []
    assert parser.push('ther"') == [CallStart(index=0, name="weather")] and parser.is_open
    assert parser.push(', "arguments": {"ci') == [ArgumentsDelta(index=0, text='{"ci')]
    assert parser.push('ty": 1}') == [ArgumentsDelta(index=0, text='ty": 1}')]
    assert parser.push("}<|function_end|>") == [] and not parser.is_open
    assert parser.flush() == [] and parser.calls == 1


def test_a_bare_call_of_an_unknown_function_is_text() -> None:
    answer = '{"name": "John", "parameters": {}}'
    assert simple(read(LLAMA3, [answer], ["weather"])) == [answer]
    assert simple(read(LLAMA3, [answer], ["John"])) == [[0, "John", "{}"]]


class Ids:
    def __init__(self, *known: str) -> None:
        self._known = known

    def token_id(self, spelling: str) -> int | None:
        return self._known.index(spelling) if spelling in self._known else None


@pytest.mark.parametrize(
    ("source", "known", "wanted"),
    [
        (MEGREZ_TEMPLATE, ("<|function_start|>", "<|function_end|>"), MEGREZ),
        (MEGREZ_TEMPLATE, (), GENERIC),
        ("{% if tools %}<tool_call>{% endif %}", ("<tool_call>",), HERMES),
        ("{%- if tools %}<tool_call><function=x>{% endif %}", ("<tool_call>",), None),
        ('{% if tools is not none %}{{"parameters"}} ipython{% endif %}', (), LLAMA3),
        ("{{ messages }} your tools", (), GENERIC),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}", (), None),
    ],
)
def test_the_format_is_the_templates_and_the_tokenizers(source, known, wanted) -> None:
    assert choose_format(ChatTemplate(source), Ids(*known)) is wanted
    assert choose_format(None, Ids()) is None


def test_megrez_gets_functions_in_the_system_prompt_and_results_as_observations() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Rome?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "晴"},
    ]  # fmt: skip
    functions = json.dumps(
        [{"name": "weather", "description": "Sky", "parameters": CITY}, {"name": "clock"}], indent=4, ensure_ascii=False
    )
    end, system = "<|turn_end|>", "<|role_start|>system<|role_end|>"
    rest = (
        f"<|role_start|>user<|role_end|>Rome?{end}<|role_start|>assistant<|role_end|>"
        f'<|function_start|>{{"name": "weather", "arguments": {{"city": "Rome"}}}}<|function_end|>{end}'
        f"<|role_start|>observation<|role_end|>晴{end}<|role_start|>assistant<|role_end|>"
    )
    template, tools = ChatTemplate(MEGREZ_TEMPLATE), [WEATHER, CLOCK]
    found = render_with_tools(template, MEGREZ, messages, tools)
    assert found == f"{system}{INTRODUCTION}\n{functions}{end}{rest}"
    own = render_with_tools(template, MEGREZ, [{"role": "system", "content": "Be kind."}, *messages], tools)
    assert own == f"{system}Be kind.\n\n{INTRODUCTION}\n{functions}{end}{rest}"


def test_a_template_without_tools_is_told_how_to_call_and_gets_results_as_words_of_the_user() -> None:
    call = {"function": {"name": "clock", "arguments": ""}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "noon"}]
    source = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    found = render_with_tools(ChatTemplate(source), GENERIC, messages, [CLOCK], add_generation_prompt=False)
    listed = json.dumps([{"name": "clock"}], indent=4)
    form = '<tool_call>\n{"name": "NAME", "arguments": {"PARAMETER": "VALUE"}}\n</tool_call>'
    assert found == (
        f"[system: {INTRODUCTION}\n{listed}\n\nTo call a function, answer with:\n{form}]"
        '[assistant: <tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>]'
        "[user: <tool_response>\nnoon\n</tool_response>]"
    )


def test_a_template_that_knows_tools_gets_them_and_arguments_as_objects() -> None:
    source = "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    strict = {"type": "function", "function": {"name": "clock", "strict": True}}
    found = render_with_tools(ChatTemplate(source), HERMES, [{"role": "assistant", "tool_calls": [call]}], [strict])
    assert found == json.dumps([CLOCK]) + '{"city": "Rome"}'


def test_tools_are_refused_where_no_format_is_known_or_they_are_malformed() -> None:
    template, user = ChatTemplate(MEGREZ_TEMPLATE), [{"role": "user", "content": "a"}]
    assert render_with_tools(template, None, user, []) == template.render(user)
    with pytest.raises(UsageError, match="no known form"):
        render_with_tools(template, None, user, [CLOCK])
    with pytest.raises(UsageError, match="not a function with a name"):
        render_with_tools(template, MEGREZ, user, [{"type": "function"}])


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(byte_level_tokenizer(), plain_manifest().tokens)


@pytest.fixture(scope="module")
def compiler(text):
    pytest.importorskip("llguidance")
    one = GuidedCompiler(text.tokenizer_json(), vocab_size=267, stop_ids=(264, 261))
    yield one
    one.close()


def follow(compiler: GuidedCompiler, text: Text, guided: Any, answer: str) -> str:
    """How much of the answer the masks let through; all of it only where it may also end."""
    matcher, passed = compiler.compile(guided).matcher(), ""
    for token in text.encode(answer):
        if not matcher.allowed()[token]:
            return passed
        passed += text.decode([token])
        if matcher.push(token):
            return answer if len(text.encode(passed)) == len(text.encode(answer)) else passed
    return answer if matcher.allowed()[264] else passed + "…"


def sample(compiler: GuidedCompiler, text: Text, guided: Any, seed: int) -> str:
    matcher, ids, generator = compiler.compile(guided).matcher(), [], np.random.default_rng(seed)
    for _ in range(400):
        token = int(generator.choice(np.flatnonzero(matcher.allowed())))
        if token in (261, 264):
            break
        ids.append(token)
        if matcher.push(token):
            break
    return text.decode(ids)


@pytest.mark.parametrize("tool_format", [MEGREZ, HERMES, LLAMA3], ids=lambda one: one.name)
def test_a_required_call_is_a_call_whatever_the_model_prefers(compiler, text, tool_format) -> None:
    either = guided_by_tools(tool_format, [WEATHER, CLOCK], "required")
    named = guided_by_tools(tool_format, [WEATHER, CLOCK], function="weather")
    single = guided_by_tools(tool_format, [WEATHER, CLOCK], "required", parallel=False)
    for seed in range(6):
        calls = simple(read(tool_format, [sample(compiler, text, either, seed)]))
        assert calls and [call[0] for call in calls] == list(range(len(calls)))
        (weather,) = simple(read(tool_format, [sample(compiler, text, named, seed)]))
        assert weather[1] == "weather" and json.loads(weather[2])["city"] in ("北京", "Rome")
        (one,) = simple(read(tool_format, [sample(compiler, text, single, seed)]))
        for _, name, arguments in [*calls[:1], one]:
            assert name in ("weather", "clock") and (json.loads(arguments) == {}) == (name == "clock")


@pytest.mark.parametrize("tool_format", [MEGREZ, HERMES, LLAMA3], ids=lambda one: one.name)
def test_strict_functions_leave_text_free_and_hold_calls_to_their_schema(compiler, text, tool_format) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    guided = guided_by_tools(tool_format, [strict, CLOCK], "auto")
    key, pad = tool_format.arguments_key, tool_format.padding
    begin = "" if tool_format.bare else tool_format.begin + pad
    good = f'{begin}{{"name": "weather", "{key}": {{"city": "Rome"}}}}{pad}{tool_format.end}'
    loose = f'{begin}{{"name": "clock", "{key}": {{"x": [1]}}}}{pad}{tool_format.end}'
    bad = good.replace("Rome", "Oslo")
    assert follow(compiler, text, guided, "Only text <b>.") == "Only text <b>."
    assert follow(compiler, text, guided, good) == good and follow(compiler, text, guided, loose) == loose
    assert follow(compiler, text, guided, bad) == bad[: bad.index("Oslo")]
    if not tool_format.bare:
        mixed = f"First {good} then {loose} end"
        assert follow(compiler, text, guided, mixed) == mixed


@pytest.mark.parametrize("tool_format", [MEGREZ, HERMES], ids=lambda one: one.name)
def test_an_answer_that_calls_nothing_is_held_to_its_own_schema(compiler, text, tool_format) -> None:
    answer = {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"], "additionalProperties": False}
    guided = guided_by_tools(tool_format, [WEATHER], "auto", answer=answer)
    pad = tool_format.padding
    loose = f'{tool_format.begin}{pad}{{"name": "weather", "arguments": {{"a": 2}}}}{pad}{tool_format.end}'
    assert follow(compiler, text, guided, loose) == loose
    assert follow(compiler, text, guided, '{"x": 1}') == '{"x": 1}'
    assert follow(compiler, text, guided, '{"x": 2}') == '{"x": ' and follow(compiler, text, guided, "Hi") == ""
    assert guided_by_tools(tool_format, [WEATHER], "required", answer=answer).structural.answer is None
    with pytest.raises(UsageError, match="llama3"):
        guided_by_tools(LLAMA3, [WEATHER], "auto", answer=answer)


def test_choices_that_ask_for_nothing_or_too_much() -> None:
    assert guided_by_tools(MEGREZ, [WEATHER], "auto") is None and guided_by_tools(MEGREZ, [], "none") is None
    for given in ({"choice": "required"}, {"function": "x"}, {"choice": "often"}):
        with pytest.raises(UsageError):
            guided_by_tools(MEGREZ, [], **given)


def test_a_functions_schema_that_cannot_be_honoured_is_refused_with_its_name(compiler) -> None:
    tool = {"function": {"name": "tags", "parameters": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(UsageError, match=r'parameters of tags.*"uniqueItems"'):
        compiler.compile(guided_by_tools(MEGREZ, [tool], "required"))
