"""Fields that change what an answer may be and that are not supported: refused by name, never left out silently."""

from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields

# OpenAI's older names of tools, and vLLM's and llama.cpp's names of guided output.
REFUSED = (
    "tools",
    "functions",
    "function_call",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "json_schema",
    "audio",
    "use_beam_search",
    "continue_final_message",
    "suffix",
    "thinking",
)


def refuse_unsupported(fields: Fields) -> None:
    """Raise ApiError for the first field that asks for what is not supported; empty and false ones ask for nothing."""
    for name in REFUSED:
        if fields.data.get(name) and not _is_off(fields.data[name]):
            raise _refusal(name)
    form = fields.fields("response_format")
    if form is not None and form.data.get("type") != "text":
        raise _refusal("response_format", 'only {"type": "text"} is')
    if fields.data.get("tool_choice", "none") not in ("none", {"type": "none"}):
        raise _refusal("tool_choice", 'only "none" is')


def _is_off(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "disabled"


def _refusal(name: str, but: str = "leave it out") -> ApiError:
    return ApiError(f"{name} is not supported: {but}", param=name, code="unsupported_parameter")
