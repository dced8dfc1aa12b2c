"""Rendering is compared with transformers' apply_chat_template; hostile templates must end in an error."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jinja2 import Environment

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
def test_a_hostile_or_broken_template_is_an_error(source):
    with pytest.raises(MegrezError) as caught:
        print(ChatTemplate(source).render([USER]))
    assert "chat template" in str(caught.value)


GROWING = "{% set ns = namespace(x=messages[0].content) %}{% for i in range(99) %}{% set ns.x = NEXT %}{% endfor %}"
NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
LONG = "{% set long = 'x' * 500000 %}"
ENDLESS = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(300) %}{% for j in range(300) %}{% for k in 'x' * 9**6 %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for c in 'x' * 900000 %}{% for d in 'x' * 900000 if d == 'y' %}{% endfor %}{% endfor %}",
    "{% for a in [[1, 2]] recursive %}{% for i in range(2) %}{{ loop(['x' * 9999]) }}{% endfor %}{% endfor %}",
    "{% for a in [1, 2, 3] recursive %}{% if loop.depth < 30 %}{{ loop([1, 2, 3]) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    GROWING.replace("NEXT", "ns.x + ns.x"),
    GROWING.replace("NEXT", "ns.x ~ ns.x"),
    GROWING.replace("NEXT", "ns.x.replace('e', ns.x)"),
    GROWING.replace("NEXT", "ns.x|replace('e', ns.x)"),
    GROWING.replace("NEXT", "'%s%s' % (ns.x, ns.x)"),
    GROWING.replace("NEXT", "'%s%s'|format(ns.x, ns.x)"),
    GROWING.replace("NEXT", "'{0}{0}'.format(ns.x)"),
    GROWING.replace("NEXT", "ns.x.join([ns.x, ns.x, ns.x])"),
    GROWING.replace("NEXT", "[ns.x, ns.x]|join"),
    GROWING.replace("NEXT", "ns.x|tojson|tojson|tojson"),
    GROWING.replace("NEXT", "[ns.x]|map('replace', 'e', ns.x)|first"),
    GROWING.replace("namespace(x=messages[0].content)", "namespace(x=99)").replace("NEXT", "ns.x * ns.x"),
    GROWING.replace("namespace(x=messages[0].content)", "namespace(x=99)").replace("NEXT", "ns.x ** 9"),
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}",
    NESTED.replace("NEXT", "[ns.x, ns.x]"),
    NESTED.replace("NEXT", "(ns.x, ns.x)"),
    NESTED.replace("NEXT", "{'a': ns.x, 'b': ns.x}"),
    NESTED.replace("NEXT", "dict(a=ns.x, b=ns.x)"),
    NESTED.replace("NEXT", "cycler(ns.x, ns.x).items"),
    NESTED.replace("NEXT", "[1]|batch(2, ns.x)|first + [ns.x]"),
    NESTED.replace("NEXT", "ns.x + ns.x"),
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ 'x\nx'|indent(10**9) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ 2|round(10**9, 'floor') }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ [[1]]|tojson(indent=10**9) }}",
    "{{ 'x'|map('center', 10**9)|list }}",
    "{{ ([[1]] * 60000)|sum(start=[]) }}",
    LONG + "{{ long.replace('', long) }}",
    LONG + "{{ long.translate({120: long}) }}",
    LONG + "{{ long|join(long) }}",
    LONG + "{{ long|map('upper')|join(long) }}",
    LONG + "{{ long.join(long|map('upper')) }}",
    LONG + "{% for i in range(999) %}{{ long }}{% endfor %}",
    LONG + "{% for i in range(999) %}{{ long[1:] }}{% endfor %}",
    LONG + "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = ns.l + [long[1:]] %}{% endfor %}",
    LONG + "{% for i in range(9999) %}{{ long|list|map('upper')|map('lower')|list|length }}{% endfor %}",
    LONG + "{{ range(9999)|select('in', long|list)|list }}",
    "{% for i in range(99999) %}" + "text " * 9999 + "{% endfor %}",
    "{% macro m() %}" + "text " * 9999 + "{% endmacro %}{% for i in range(99999) %}{{ m() }}{% endfor %}",
]
PROGRAM = """
import json, resource, sys
from megrez.runtime import template_limits
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import MegrezError
ChatTemplate("x").check()
template_limits.SECONDS = 0.2
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
for source in json.load(sys.stdin):
    try:
        print("rendered", len(ChatTemplate(source).render([{"role": "user", "content": "e" * 50}])), repr(source[-90:]))
    except MegrezError as error:
        print("memory" if "MemoryError" in str(error) else "error", repr(source[-90:]), error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_template_that_loops_or_grows_for_ever_is_refused_within_a_bound_of_memory():
    # In a process of its own: what is not bounded would take all of the time or memory of this one.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(ENDLESS), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if not line.startswith("error ")] == []
    assert done.stdout.count("\n") == len(ENDLESS)


def test_limits_leave_long_conversations_alone():
    talk = [{"role": role, "content": "word " * 400} for role in ("user", "assistant")] * 300
    assert ChatTemplate(CHATML).render(talk).count("word ") == 400 * 600


def test_templates_that_use_what_is_measured_render_as_jinja_would():
    source = (
        "{% set ns = namespace(x=[]) %}{% for k, v in {'b': 1, 'a': 2}|dictsort %}{% set ns.x = ns.x + [k ~ v] %}"
        "{% endfor %}{{ ns.x|join(', ') }} {{ ns.x|map('upper')|list }} {{ '%s=%d' % ('a', 7) }} {{ 'x'|center(5) }}|"
        "{{ ', '.join(ns.x) }} {{ 'a b'.split() }} {{ {'a': (1, 2)} }} {{ ns.x[1:] }} {{ 3 in [1, 2] }}"
        "{% filter upper %}{% for i in range(4) if i % 2 %}{{ loop.index }}{{ i }}{% endfor %}up{% endfilter %}"
        "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}"
    )
    expected = Environment().from_string(source).render()
    assert ChatTemplate(source).render([USER]) == expected


def test_threads_are_limited_each_by_itself():
    def render(source: str) -> str:
        try:
            return ChatTemplate(source).render([USER])
        except BundleError:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(render, ["{{ 'x'|center(10**9) }}", "{{ 'x' }}"] * 4)) == ["refused", "x"] * 4


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
