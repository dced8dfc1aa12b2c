"""The chat page as it is served; tests/browser uses it."""

import base64
import hashlib
import http.client
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megrez.runtime.serving.http.app import Limits

ROOT = Path(__file__).parents[4]
FILE = ROOT / "runtime" / "serving" / "http" / "page.html"


class Tags(HTMLParser):
    """Attributes as (tag, name, value), ids, and the texts of script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.cdata_elem:
            self.raw[self.cdata_elem].append(data)

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def tags():
    return Tags(FILE.read_text(encoding="utf-8"))


def fetch(server, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, "/")
    found = connection.getresponse()
    return found, found.read()


def policy(found) -> dict[str, str]:
    directives = (one.strip().partition(" ") for one in found.headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in directives}


def test_it_is_served_without_a_key(start):
    for limits in (None, Limits(api_key="secret")):
        server = start(limits=limits)
        found, body = fetch(server)
        assert (found.status, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert body == FILE.read_bytes()
        assert found.headers["x-content-type-options"] == "nosniff"
        head, nothing = fetch(server, "HEAD")
        assert (head.status, nothing) == (200, b"")
    assert server.get("/v1/models")[0] == 401
    assert server.post("/", {})[0] == 405


def test_the_policy_allows_the_files_own_script_and_style_alone(server, tags):
    found = policy(fetch(server)[0])
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = tags.raw[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert found.pop(directive) == f"'sha256-{digest}'"
    assert found == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_nothing_is_asked_of_other_hosts(tags):
    text = FILE.read_text(encoding="utf-8")
    assert re.findall(r"\w+://|@import|url\(|sendBeacon|WebSocket|EventSource|XMLHttpRequest|import\(", text) == []
    links = tags.values("src", "href", "action", "srcset", "ping", "formaction")
    assert links and all(one.startswith(("data:", "#")) for one in links)
    paths = re.findall(r'(?:fetch|request)\("([^"]+)"', text)
    # Relative paths, so that the page works behind a prefix too.
    assert set(paths) == {"v1/models", "v1/chat/completions", "tokenize", "ready"}


def test_text_never_becomes_html_or_script(tags):
    (script,) = tags.raw["script"]
    sinks = r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|createContextual|setHTML|\beval\b"
    assert re.findall(sinks, script) == []
    assert [name for _, name, _ in tags.attributes if name.startswith("on") or name == "style"] == []


def test_labels_and_scripts_refer_to_ids_that_are_there(tags):
    ids = tags.values("id")
    assert len(ids) == len(set(ids))
    (script,) = tags.raw["script"]
    referred = {*re.findall(r'byId\("([^"]+)"\)', script), *tags.values("for", "aria-labelledby", "aria-describedby")}
    assert referred and referred <= set(ids)
    live = [value for _, name, value in tags.attributes if name in ("aria-live", "role") and value in ("log", "polite")]
    assert live == []  # only the status is announced, not each token


def test_the_wheel_has_it():
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = "megrez.runtime.serving.http"
    folder = ROOT / settings["package-dir"][package]
    packaged = {path for pattern in settings["package-data"][package] for path in folder.glob(pattern)}
    assert packaged == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"} == {FILE}
