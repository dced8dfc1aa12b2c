"""The chat page in headless Chromium: what a user sees and hears, by keyboard, in both widths and colour schemes."""

import re
import socket
from pathlib import Path

import pytest

from megrez.runtime.serving.http.app import Limits
from tests.browser.answering import CAPACITY
from tests.runtime.serving.http.servers import wait_until
from tests.runtime.serving.http.test_serve_command import command, ready_line

pytestmark = pytest.mark.browser
SCREENSHOTS = Path(__file__).parents[2] / "build" / "browser"
ENTER, ESCAPE, TAB, LEFT = "\ue007", "\ue00c", "\ue004", "\ue012"
SYSTEM = "你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。"
RICH = """# Reversing a list

Use **slices**; they are *short*, and `items[::-1]` copies:

```python
def backwards(items: list[int]) -> list[int]:
    return items[::-1]  # a new list
```

1. Take the list.
2. Reverse it:
   - in place
   - or as a copy

| form | copies |
|---|---|
| `reverse()` | no |

> Mind the *first* element."""


def prompt(*turns: tuple[str, str]) -> str:
    """Megrez's template, written out again."""
    text = "".join(f"<|role_start|>{role}<|role_end|>{content}<|turn_end|>" for role, content in turns)
    return text + "<|role_start|>assistant<|role_end|>"


def test_a_conversation_by_keyboard(start, page):
    server = start()
    page.open(server.url)
    assert page.text("#model") == "tiny" and page.text("#connection") == "Ready"
    page.press("one")
    page.press_shift_enter()
    page.ask("two")
    page.wait_for_answers("heard: one\ntwo")
    page.ask("three")
    page.wait_for_answers("heard: one\ntwo", "heard: three")
    assert page.questions() == ["one\ntwo", "three"]
    first = [("system", SYSTEM), ("user", "one\ntwo")]
    second = [*first, ("assistant", "heard: one\ntwo"), ("user", "three")]
    assert server.llm.session.prompts == [prompt(*first), prompt(*second)]
    assert page.script("return document.getElementById('status').textContent") == "Answer: heard: three"
    assert page.errors() == []


def test_the_figures_are_the_servers(start, page):
    server = start()
    page.open(server.url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    from tests.browser.answering import TOKENIZER

    asked = len(TOKENIZER.encode(prompt(("system", SYSTEM), ("user", "hi"))).ids)
    said = len(TOKENIZER.encode("heard: hi").ids) + 1  # and the stop token
    assert page.text("#used") == f"{asked + said} of {CAPACITY:,} tokens"
    assert re.fullmatch(rf"[\d.]+ tokens/s · {said} tokens · first after \d+\.\d\d s", page.text(".stats"))


def test_tokens_are_shown_as_they_come_and_stop_frees_the_slot(start, page):
    server = start(gated=True)
    session = server.llm.session
    page.open(server.url)
    page.ask("hi")
    wait_until(lambda: session.entered == 1)
    while not session.prompts:  # the steps that compute the prompt, and the first token
        session.allow()
        wait_until(lambda entered=session.entered: session.entered > entered)
    page.wait(lambda: page.answers() == ["he"])
    session.allow(3)
    page.wait(lambda: page.answers() == ["heard"])
    page.press("typed meanwhile", ENTER)
    assert page.questions() == ["hi"]
    page.press(ESCAPE)
    page.wait(page.is_idle)
    session.allow()  # the step that runs cannot be stopped
    entered = session.entered
    wait_until(lambda: server.llm.load() == (0, 0, 0))
    assert session.entered == entered
    assert page.answers() == ["heard"] and page.text(".stats").startswith("stopped · ≈ ")
    assert page.find("#input").get_property("value") == "typed meanwhile"
    session.open()
    page.press(ENTER)
    page.wait_for_answers("heard", "heard: typed meanwhile")
    turns = [("system", SYSTEM), ("user", "hi"), ("assistant", "heard"), ("user", "typed meanwhile")]
    assert session.prompts[-1] == prompt(*turns)


def test_an_earlier_question_is_edited_and_asked_again(start, page):
    server = start()
    page.open(server.url)
    for number, question in enumerate(("first", "second", "third"), 1):
        page.ask(question)
        page.wait(lambda number=number: len(page.answers()) == number and page.is_idle())
    page.find_all(".edit")[1].send_keys(ENTER)
    assert "the question after it" in page.text(".turn:nth-child(2) .replaces")
    page.press(" thought", ENTER)
    page.wait_for_answers("heard: first", "heard: second thought")
    turns = [("user", "first"), ("assistant", "heard: first"), ("user", "second thought")]
    assert server.llm.session.prompts[-1] == prompt(("system", SYSTEM), *turns)
    page.find_all(".edit")[0].send_keys(ENTER)
    page.press("x", ESCAPE)
    assert page.questions() == ["first", "second thought"]


def test_retry_asks_the_last_question_again(start, page):
    server = start()
    page.open(server.url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    server.llm.session.answers["hi"] = "now this"
    page.find(".retry").send_keys(ENTER)
    page.wait_for_answers("now this")
    assert server.llm.session.prompts == [prompt(("system", SYSTEM), ("user", "hi"))] * 2


def test_system_prompt_and_temperature(start, page):
    server = start()
    asked = []
    submit = server.llm.submit
    server.llm.submit = lambda ids, params, *rest: asked.append(params.temperature) or submit(ids, params, *rest)
    page.open(server.url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    page.find("#open-settings").send_keys(ENTER)
    page.press("Be brief.")
    page.find("#temperature").send_keys(LEFT * 3)
    page.press(ESCAPE)
    assert page.text("#connection") == "Ready · temperature 0.7 · system prompt"
    page.find("#input").send_keys("again", ENTER)
    page.wait_for_answers("heard: hi", "heard: again")
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "heard: hi"), ("user", "again")]
    assert server.llm.session.prompts[-1] == prompt(*turns)
    assert asked == [0.0, 0.7]


def test_a_server_that_is_killed_and_comes_back(folder, page):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with command(folder, "--port", port, SAYS="one two three " * 5, NAP="0.1") as process:
        ready_line(process)
        page.open(f"http://127.0.0.1:{port}")
        page.ask("question")
        page.wait(lambda: "one t" in page.answers()[0])
        process.kill()
        process.wait()
        page.wait(page.is_idle)
    assert "connection to the server was lost" in page.notice() and "is kept" in page.notice()
    assert page.answers()[0].startswith("one t")
    page.wait(lambda: "cannot be reached" in page.text("#banner"))
    page.ask("in vain")
    page.wait(page.is_idle)
    assert "cannot be reached" in page.notice() and page.questions() == ["question", "in vain"]
    page.press("typed")
    with command(folder, "--port", port, SAYS="at last") as process:
        ready_line(process)
        page.wait(lambda: "The server is back" in page.text("#banner"))
        assert page.text("#connection") == "Ready"
        page.press(ENTER)
        page.wait(lambda: page.answers()[-1] == "at last" and page.is_idle())
        assert page.questions() == ["question", "in vain", "typed"]
        assert page.errors() == []


def test_a_key_is_asked_for_and_sent(start, page):
    server = start(limits=Limits(api_key="clé"))
    page.open(server.url)
    page.wait(lambda: page.text("#key-title"))
    page.press("wrong", ENTER)
    page.wait(lambda: "did not accept" in page.text("#key-wrong"))
    page.press("clé", ENTER)
    page.wait(lambda: page.text("#connection") == "Ready")
    page.ask("hi")
    page.wait_for_answers("heard: hi")


def test_a_key_that_is_not_given(start, page):
    page.open(start(limits=Limits(api_key="secret")).url)
    page.press(ESCAPE)
    page.wait(lambda: page.text("#connection") == "Needs an API key")
    page.ask("hi")
    page.wait(lambda: page.text("#key-title"))
    page.press("secret", ENTER)
    page.wait_for_answers("heard: hi")
    page.wait(lambda: page.text("#connection") == "Ready")


def test_a_full_context_is_told(start, page):
    server = start()
    server.llm.session.answers["hi"] = "word " * 500
    page.open(server.url)
    page.ask("hi")
    page.wait(lambda: page.notice())
    assert "the model's context is full" in page.notice()
    page.ask("more")
    page.wait(lambda: len(page.answers()) == 2 and page.is_idle())
    assert f"does not fit the model's context of {CAPACITY:,} tokens" in page.notice()


def test_reloading_keeps_the_conversation_and_new_chat_can_be_undone(start, page):
    server = start()
    page.open(server.url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    page.press("a draft")
    used = page.text("#used")
    page.open(server.url)
    assert page.questions() == ["hi"] and page.answers() == ["heard: hi"]
    assert page.find("#input").get_property("value") == "a draft"
    page.wait(lambda: page.text("#used"))
    assert int(page.text("#used").split()[0]) - int(used.split()[0]) == 0
    page.find("#new").send_keys(ENTER)
    assert page.questions() == [] and page.text("#welcome h2") and not page.text("#used")
    page.find("#undo button").send_keys(ENTER)
    assert page.questions() == ["hi"]


def test_markdown_becomes_elements(start, page):
    server = start()
    server.llm.session.answers["rich"] = RICH
    page.open(server.url)
    page.ask("rich")
    page.wait(lambda: page.answers() and page.answers()[0].endswith("element.") and page.is_idle())
    texts = {
        "h3": "Reversing a list",
        "strong": "slices",
        "p em": "short",
        "p code": "items[::-1]",
        "pre code": "def backwards(items: list[int]) -> list[int]:\n    return items[::-1]  # a new list",
        "ol > li:first-child": "Take the list.",
        "ol > li:nth-child(2) > ul > li:nth-child(2)": "or as a copy",
        "td code": "reverse()",
        "blockquote em": "first",
    }
    assert {selector: page.text(f".markdown {selector}") for selector in texts} == texts


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>",
        "[link](javascript:document.title='hacked') **<b onclick=x>b</b>** `<i>i</i>`",
        "- " * 300 + "deep",
        "*_" * 200 + "deep" + "_*" * 200,
        "> " * 300 + "deep",
        "# " + "#" * 600 + " x " + "`" * 500 + "*" * 300,
    ],
)
def test_what_a_model_writes_is_only_text(start, page, text):
    server = start()
    server.llm.session.answers["hi"] = text
    page.open(server.url)
    page.ask("hi")
    page.wait(lambda: page.text(".stats") and page.is_idle())
    known = "p, h3, ul, ol, li, code, strong, em, s, blockquote, hr, div, span, button, pre"
    assert page.script(f"return document.querySelectorAll('.markdown *:not({known})').length") == 0
    assert page.script("return document.querySelectorAll('.markdown [onclick], .markdown [onerror]').length") == 0
    assert page.driver.title == "tiny" and page.errors() == []


def test_no_other_host_is_asked_and_html_cannot_be_injected(start, page):
    server = start()
    page.open(server.url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    asked = page.script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked and all(one.startswith(server.url + "/") for one in asked)
    inject = "try { document.body.innerHTML = '<b>x</b>'; return 'taken' } catch (error) { return error.name }"
    assert page.script(inject) == "TypeError"
    send = "return fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert page.script(send) == "refused"
    assert any("Content Security Policy" in one for one in page.errors())


def test_every_control_is_reached_by_tab_and_has_a_name(start, page):
    page.open(start().url)
    page.ask("hi")
    page.wait_for_answers("heard: hi")
    names = []
    for _ in range(20):
        page.press(TAB)
        focused = page.driver.switch_to.active_element
        if focused.tag_name == "body":
            continue  # around the browser's own controls
        assert focused.accessible_name
        ring = page.find(".box") if focused.tag_name == "textarea" else focused
        assert ring.value_of_css_property("outline-style") != "none"
        names.append(focused.accessible_name)
    reached = {"Skip to the question", "New chat", "Settings", "Edit", "Copy", "Retry", "Your question", "Send"}
    assert reached <= set(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1100, 800), (360, 740)], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_screen(start, page, width, height, scheme):
    server = start(name="Infinigence/Megrez-3B-Instruct-cpu-int4")
    server.llm.session.answers["How do I reverse a list in Python?"] = RICH + "\n\n" + "x" * 300
    page.resize(width, height, scheme=scheme)
    page.open(server.url)
    page.screenshot(SCREENSHOTS / f"{width}-{scheme}-start.png")
    page.ask("How do I reverse a list in Python?")
    page.wait(lambda: page.answers()[0].endswith("xxx") and page.is_idle())
    assert page.script("return document.documentElement.scrollWidth") <= width
    page.screenshot(SCREENSHOTS / f"{width}-{scheme}-end.png")
    page.script("scrollTo(0, 0)")
    page.screenshot(SCREENSHOTS / f"{width}-{scheme}-answer.png")
    page.find("#open-settings").send_keys(ENTER)
    page.screenshot(SCREENSHOTS / f"{width}-{scheme}-settings.png")
    background = page.script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
    assert dark == (scheme == "dark")
