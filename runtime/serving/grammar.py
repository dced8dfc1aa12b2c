"""A Guided as the text of a grammar for llguidance; knows no tokens but the special ones' ids."""

import json
import re
from collections.abc import Mapping
from typing import Any

from megrez.runtime.errors import UsageError, first_line
from megrez.runtime.guided import Guided, Segment, Structural
from megrez.runtime.serving.json_schema import read_schema

# Enough for the indentation of pretty-printed JSON; without a bound, a model may generate white space without end.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
# Any text, and any that begins no JSON object.
_TEXT, _NO_OBJECT = r"/(.|\n)*/", r"/([^{ \n\r\t](.|\n)*)?/"


def grammar_text(guided: Guided, specials: Mapping[str, int]) -> str:
    """The grammar in llguidance's format; UsageError for one that cannot be enforced. specials: text → id."""
    from llguidance import LLMatcher, grammar_from

    if guided.json_object:
        return LLMatcher.grammar_from_json_schema(_options({"type": "object"}))
    if guided.json_schema is not None:
        return LLMatcher.grammar_from_json_schema(_options(read_schema(guided.json_schema)))
    if guided.regex is not None:
        return LLMatcher.grammar_from_regex(guided.regex)
    if guided.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(_quoted(one) for one in guided.choice))
    if guided.structural is not None:
        return LLMatcher.grammar_from_lark(structural_lark(guided.structural, specials))
    try:
        return str(grammar_from("grammar", guided.grammar or ""))
    except ValueError as error:
        raise UsageError(f"the grammar is neither Lark nor GBNF: {first_line(error)}") from error


def structural_lark(structural: Structural, specials: Mapping[str, int]) -> str:
    """Lark for segments of JSON, with text around them where free_text allows it."""
    rules = [_segment_rule(at, one, structural.trigger, specials) for at, one in enumerate(structural.segments)]
    any_of = " | ".join(f"segment_{at}" for at in range(len(rules)))
    rules.append(f"segment: {any_of}")
    separator = _spelled(structural.separator, specials)
    trigger = _spelled(structural.trigger, specials)
    # Free text ends at a special token; a trigger of ordinary text needs a lazy match.
    lazy = bool(structural.trigger) and structural.trigger not in specials
    if not structural.free_text or structural.answer is not None:
        more = f" ({separator} {trigger} segment)*" if structural.repeat else ""
        if structural.answer is not None:
            more += f"\n    | %json {json.dumps(_options(read_schema(structural.answer)))}"
        return "\n".join([f"start: {trigger} segment{more}", *rules])
    if not structural.trigger:
        return "\n".join([f"start: NO_OBJECT | segment\nNO_OBJECT: {_NO_OBJECT}", *rules])
    head = f"head[lazy]: TEXT {trigger}" if lazy else f"head: text {trigger}"
    many = "*" if structural.repeat else "?"
    return "\n".join([f"start: (head segment){many} text\ntext: TEXT\nTEXT: {_TEXT}", head, *rules])


def _segment_rule(at: int, segment: Segment, trigger: str, specials: Mapping[str, int]) -> str:
    try:
        schema = _options(read_schema(segment.schema))
    except UsageError as error:
        raise UsageError(f"the parameters of {segment.name}: {error}") from error
    begin, end = segment.begin.removeprefix(trigger), segment.end
    return f"segment_{at}: {_spelled(begin, specials)} %json {json.dumps(schema)} {_spelled(end, specials)}"


def _options(schema: Mapping[str, Any]) -> dict[str, Any]:
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": False, "coerce_one_of": False}
    return {**schema, "x-guidance": options}


def _spelled(text: str, specials: Mapping[str, int]) -> str:
    """The text in Lark, with special tokens as ids."""
    if not specials:
        return _quoted(text) if text else ""
    longest_first = sorted(specials, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return " ".join(f"<[{specials[one]}]>" if one in specials else _quoted(one) for one in pieces if one)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
