"""OpenAI's and Anthropic's own clients of a server, imported by the process that needs one: that takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.runtime.serving.http.servers import Running

if TYPE_CHECKING:
    import anthropic
    import openai

SETTINGS: dict[str, Any] = {"api_key": "any", "max_retries": 0, "timeout": 60}


def openai_client(server: Running) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", **SETTINGS)


def openai_async_client(server: Running) -> openai.AsyncOpenAI:
    import openai

    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", **SETTINGS)


def anthropic_client(server: Running) -> anthropic.Anthropic:
    import anthropic

    return anthropic.Anthropic(base_url=server.url, **SETTINGS)


def anthropic_async_client(server: Running) -> anthropic.AsyncAnthropic:
    import anthropic

    return anthropic.AsyncAnthropic(base_url=server.url, **SETTINGS)
