"""Rendering is compared with transformers' apply_chat_template; hostile templates must end in an error."""

import time

import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import BundleError, MegrezError, UsageError
from megrez.runtime.text import Text

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{%- set ns = namespace(turn=0) %}
{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
    {% if (message['role'] == 'user') != (ns.turn % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% set ns.turn = ns.turn + 1 %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% else %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
"""
TOOLS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content if m.content is defined else '-' }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson(indent=2) }}{% endif %};{% endfor %}{{ dict(a=1) | tojson }}"
)
NO_TOOLS = (
    "{% if tools is not none %}tools{% endif %}{% if tools is defined %}defined{% endif %}"
    "{% if documents is not none %}documents{% endif %}{% if documents is defined %}defined{% endif %}"
)
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' }}{% endfor %}{% endfor %}"

USER = {"role": "user", "content": "Is 1 < 2 & 'é' > \"e\"? 你好"}
TALK = [{"role": "system", "content": " Be brief. "}, USER, {"role": "assistant", "content": "Yes."}, USER]
CALL = [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "<search>", "arguments": {"q": "é&"}}]}]
LIST = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]


@pytest.fixture(scope="module")
def reference():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("messages", [[USER], TALK], ids=["one", "talk"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", ["megrez", "chatml", "llama3", "mistral"])
def test_same_output_as_transformers(reference, megrez_template, name, messages, prompt):
    source = {"megrez": megrez_template, "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}[name]
    expected = reference.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(messages, add_generation_prompt=prompt) == expected
    assert USER["content"] in expected


@pytest.mark.parametrize(
    ("source", "messages"),
    [(TOOLS, CALL), (PARTS, LIST), (NO_TOOLS, [USER])],
    ids=["tools", "parts", "no-tools"],
)
def test_structured_messages_render_as_in_transformers(reference, source, messages):
    expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(source).render(messages, add_generation_prompt=False) == expected


def test_megrez_prompt_is_the_model_cards(megrez_template):
    assert ChatTemplate(megrez_template).render([{"role": "user", "content": "hi"}]) == (
        "<|role_start|>system<|role_end|>你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。<|turn_end|>"
        "<|role_start|>user<|role_end|>hi<|turn_end|><|role_start|>assistant<|role_end|>"
    )


def test_what_a_template_raises_is_the_users_to_mend():
    with pytest.raises(UsageError, match="roles must alternate"):
        ChatTemplate(MISTRAL).render([USER, USER])


def test_strftime_now_knows_this_year():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([USER]) == time.strftime("%Y")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**12) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(0, 10**30, 7) %}{% endfor %}",
        "{{ 'a' * 10**11 }}",
        "{{ 10**10 * [0] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''|attr('__class__') }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ namespace.__globals__['importlib'] }}",
        "{{ dict.__class__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__html__=raise_exception) }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ undefined.attribute }}",
    ],
)
def test_a_hostile_or_broken_template_is_an_error_at_once(source):
    start = time.perf_counter()
    with pytest.raises(MegrezError) as caught:
        print(ChatTemplate(source).render([USER]))
    assert "chat template" in str(caught.value)
    assert time.perf_counter() - start < 2


def test_ordinary_arithmetic_is_left_alone():
    source = "{{ '-' * 3 }}{{ 2 * '=' }} {{ 10**9 * 10**9 }} {{ 7 % 4 }} {% for i in range(3) %}{{ i }}{% endfor %}"
    assert ChatTemplate(source).render([USER]) == "---== 1000000000000000000 3 012"


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% endif %}", "{{ x | nofilter }}"])
def test_a_template_that_is_no_jinja_is_refused_with_its_line(source):
    with pytest.raises(BundleError, match="not valid Jinja in line 2"):
        ChatTemplate("\n" + source).check()


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        (["hi"], "message 0 has no role"),
        ([USER, {"content": "hi"}], "message 1 has no role"),
        ([{"role": "", "content": "hi"}], "no role"),
        ([{"role": 7, "content": "hi"}], "no role"),
        ([{"role": "user", "content": 7}], "content of type int"),
        ([{"role": "user", "content": "x", "extra": object()}], "not JSON"),
    ],
)
def test_malformed_messages_are_refused(messages, said):
    with pytest.raises(UsageError, match=said):
        ChatTemplate(CHATML).render(messages)


def test_a_bundles_template_knows_its_tokens_and_a_base_model_has_none(make_bundle, byte_level, tmp_path):
    bundle = open_bundle(make_bundle(tokenizer=byte_level, template="{{ bos_token }}[{{ eos_token }}]"))
    template = ChatTemplate.open(bundle, Text.open(bundle))
    assert template is not None
    assert template.render([USER]) == "[<|turn_end|>]"


def test_a_base_model_has_no_template(make_bundle, byte_level):
    bundle = open_bundle(make_bundle(tokenizer=byte_level))
    assert ChatTemplate.open(bundle, Text.open(bundle)) is None
