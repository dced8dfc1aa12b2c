"""Fields that change what an answer may be and that are not supported: refused by name, never left out silently."""

from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields

REFUSED = {
    "functions": "give tools",
    "function_call": "give tool_choice",
    "grammar": "give guided_grammar",
    "json_schema": "give response_format",
    "structural_tag": "give tools",
    "guided_whitespace_pattern": "leave it out",
    "web_search_options": "give a function that searches",
    "audio": "leave it out",
    "use_beam_search": "leave it out",
    "continue_final_message": "leave it out",
    "suffix": "leave it out",
    "thinking": "leave it out",
}
# Names that other endpoints have for what they support.
REFUSED_BY_COMPLETIONS = {name: "ask /v1/chat/completions" for name in ("tools", "tool_choice")}
REFUSED_BY_MESSAGES = {
    "parallel_tool_calls": "give tool_choice.disable_parallel_tool_use",
    "mcp_servers": "give tools",
    "container": "leave it out",
}


def refuse_unsupported(fields: Fields, more: dict[str, str] | None = None) -> None:
    """Raise ApiError for the first field that asks for what is not supported; empty and false ones ask for nothing."""
    for name, instead in {**REFUSED, **(more or {})}.items():
        value = fields.data.get(name)
        if value and value not in ("none", {"type": "none"}, {"type": "disabled"}):
            raise ApiError(f"{name} is not supported: {instead}", param=name, code="unsupported_parameter")
