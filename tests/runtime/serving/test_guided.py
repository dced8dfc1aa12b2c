"""Guided output over a session with random logits: whatever the model would say, the answer keeps the rules."""

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from megrez.runtime.errors import EngineError, MissingExtraError, UsageError
from megrez.runtime.guided import Guided
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.guided import GuidedCompiler, unpack
from megrez.runtime.serving.request import Request, Token
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Detokenizer, Text
from tests.runtime.conftest import byte_fallback_tokenizer, byte_level_tokenizer, plain_manifest
from tests.runtime.serving.schema_rules import holds

# The tokenizer has 267 ids, of which 261 on are special; the model's logits have more.
VOCAB, EOS, TURN_END = 300, 261, 264
STOPS = (TURN_END, EOS)

pytest.importorskip("llguidance")


class RandomSession(FakeSession):
    """Logits that are random but fixed by the tokens before them; what closes JSON is likelier, so that it ends."""

    def __init__(self, *, seed: int = 0, **shape: int) -> None:
        super().__init__(vocab_size=VOCAB, **shape)
        self._seed = seed
        closing = byte_level_tokenizer().encode('"}],').ids
        self._bias = np.zeros(VOCAB, np.float32)
        self._bias[closing] = 4.0

    def step(self, *batch: Any, **named: Any) -> Any:
        places = super().step(*batch, **named).argmax(axis=1)
        return np.stack([np.random.default_rng([self._seed, at]).normal(size=VOCAB) for at in places]).astype(
            np.float32
        ) + np.float32(self._bias)


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(byte_level_tokenizer(), plain_manifest().tokens)


@pytest.fixture(scope="module")
def compiler(text: Text):
    one = GuidedCompiler(text.tokenizer_json(), vocab_size=VOCAB, stop_ids=STOPS)
    yield one
    one.close()


class Asked:
    def __init__(self, engine: Engine, compiler: GuidedCompiler, *, prompt: tuple[int, ...] = (1, 2), **params: Any):
        self.heard: list[Any] = []
        asked = SamplingParams(**params)
        grammar = None if asked.guided is None else compiler.compile(asked.guided)
        self.request = Request(prompt_ids=list(prompt), params=asked, sink=self.heard.append, grammar=grammar)
        engine.add(self.request)

    def answer(self, index: int = 0) -> str:
        return "".join(one.text for one in self.heard if isinstance(one, Token) and one.index == index)

    def ids(self, index: int = 0) -> list[int]:
        return [one.token for one in self.heard if isinstance(one, Token) and one.index == index]

    @property
    def reasons(self) -> list[str]:
        return [one.finish_reason for one in self.heard if isinstance(one, Token) and one.finish_reason]


def new_engine(text: Text, *, slots: int = 4, seed: int = 0, capacity: int = 2000) -> Engine:
    session = RandomSession(seed=seed, slots=slots, capacity=capacity)
    return Engine(session, stop_ids=STOPS, detokenizer=lambda prompt: Detokenizer(text, prompt))


def drain(engine: Engine) -> None:
    for _ in range(10_000):
        if engine.is_idle:
            return
        engine.step()
    raise AssertionError("the engine never became idle")


def nested(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 3}


WORD = {"type": "string", "maxLength": 8}
SCHEMAS: dict[str, Any] = {
    "enum": {"enum": ["red", 3, None, True, {"a": [1]}, "naïve \"q\"\n"]},
    "const": {"const": {"version": 2, "tags": ["x", "é"]}},
    "bounded integer": {"type": "integer", "minimum": -20, "maximum": 37},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    "bounded number": {"type": "number", "minimum": 0.25, "maximum": 3.5},
    "multiples": {"type": "integer", "minimum": 1, "maximum": 60, "multipleOf": 7},
    "pattern": {"type": "string", "pattern": "^[a-f]{2}-[0-9]{3}$"},
    "unanchored pattern": {"type": "string", "pattern": "q[0-9]", "maxLength": 9},
    "length": {"type": "string", "minLength": 3, "maxLength": 5},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "boolean or null": {"type": ["boolean", "null"]},
    "nested arrays": nested(nested(nested({"type": "integer", "minimum": 0, "maximum": 99}))),
    "tuple": {"type": "array", "prefixItems": [WORD, {"type": "boolean"}], "items": False, "minItems": 2},
    "closed object": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional properties": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": WORD, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "typed additional properties": {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["id"],
        "additionalProperties": {"type": "boolean"},
    },
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^n_[a-z]{1,3}$": {"type": "integer", "minimum": 0, "maximum": 9}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "non-ASCII names": {
        "type": "object",
        "properties": {"größe": {"enum": ["klein", "groß"]}, "城市": WORD},
        "required": ["größe", "城市"],
        "additionalProperties": False,
    },
    "union": {"anyOf": [{"type": "string", "maxLength": 3}, nested({"type": "boolean"}), {"const": 7}]},
    "disjoint one of": {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    "all of": {"allOf": [{"type": "string", "minLength": 2, "maxLength": 6}, {"pattern": "^a"}]},
    "reference": {
        "$defs": {"point": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2,
                            "maxItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursion": {
        "title": "tree",
        "$defs": {"tree": {
            "type": "object",
            "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
            "required": ["v", "next"],
            "additionalProperties": False,
        }},
        "$ref": "#/$defs/tree",
    },
}  # fmt: skip


def decides(compiler: GuidedCompiler, text: Text, guided: Guided, answer: str) -> bool:
    """Whether the masks let the whole answer through, and then its end."""
    matcher = compiler.compile(guided).matcher()
    tokens = text.encode(answer)
    for at, token in enumerate(tokens):
        if not matcher.allowed()[token]:
            return False
        if matcher.push(token):
            return at == len(tokens) - 1
    allowed = matcher.allowed()
    return bool(allowed[TURN_END] and allowed[EOS])


def test_every_answer_keeps_its_schema_whatever_the_model_prefers(compiler, text) -> None:
    for seed in range(3):
        engine = new_engine(text, seed=seed, slots=len(SCHEMAS))
        asked = {
            name: Asked(engine, compiler, guided=Guided(json_schema=schema), seed=seed, temperature=1.5 * (seed % 2))
            for name, schema in SCHEMAS.items()
        }
        drain(engine)
        for name, one in asked.items():
            if one.reasons != ["stop"]:  # a model may go on until the context is full where a schema sets no bound
                assert name in ("recursion", "typed additional properties") and one.reasons == ["length"], name
                continue
            value = json.loads(one.answer())
            assert holds(value, SCHEMAS[name], SCHEMAS[name]), (name, one.answer())
            assert not set(one.ids()[:-1]) & set(STOPS)


VALUES = [
    "red", 3, None, True, False, {"a": [1]}, 'naïve "q"\n', {"version": 2, "tags": ["x", "é"]}, -20, 37, 38, -21, 9, 10,
    11, 12, 0.25, 3.5, 3.75, 0.125, 1.5, 7, 14, 15, "ab-123", "ab-1234", "xq7", "q", "abc", "日本語", "abcdef",
    "😀😀😀",
    "2024-02-29", "2024-13-01", "123e4567-e89b-12d3-a456-426614174000", [[[1], [2, 3]]], [[[]]], [[[100]]], ["w", True],
    ["w"], ["w", True, 1], {"name": "é\\", "age": 3}, {"name": "x"}, {"name": "x", "age": 151}, {"b": "x"}, {"a": True},
    {"a": True, "b": "", "c": None}, {"b": "x", "d": 1}, {"id": 1, "z": True}, {"id": 1, "z": 2}, {"n_ab": 3}, {},
    {"n_ab": 3, "m": 1}, {"größe": "groß", "城市": "北京"}, {"größe": "gross", "城市": ""}, [True, False], "ab", "a",
    {"from": [1, 2], "to": [3, 4]}, {"from": [1], "to": [3, 4]}, {"v": True, "next": {"v": False, "next": None}},
    {"v": True}, [], [1, 2],
]  # fmt: skip


def test_masks_accept_what_the_schema_accepts_and_nothing_else(compiler, text) -> None:
    accepted = 0
    for name, schema in SCHEMAS.items():
        for value in VALUES:
            wanted = holds(value, schema, schema)
            if name == "date" and value == "2024-13-01":
                wanted = False  # the rules here know a date's form alone
            found = decides(compiler, text, Guided(json_schema=schema), json.dumps(value, ensure_ascii=False))
            assert found == wanted, (name, value)
            accepted += found
    assert accepted > 2 * len(SCHEMAS)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" at #,'),
        ({"properties": {"a": {"items": {"contains": {}}}}}, '"contains" at #/properties/a/items'),
        ({"anyOf": [{"not": {"type": "string"}}]}, '"not" at #/anyOf/0'),
        ({"$defs": {"x": {"if": True}}}, '"if" at #/\\$defs/x'),
        ({"propertyNames": {"pattern": "a"}}, '"propertyNames"'),
        ({"dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
        ({"unevaluatedProperties": False}, '"unevaluatedProperties"'),
        ({"type": "string", "contentEncoding": "base64"}, '"contentEncoding"'),
        ({"type": "string", "nullable": True}, '"nullable"'),
        ({"type": "string", "minlength": 3}, '"minlength"'),
        ({"x-guidance": {"lenient": True}, "type": "string"}, '"x-guidance"'),
        ({"minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum as a boolean"),
        ({"type": "string", "format": "iban"}, "iban"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "https://example.com/a.json"}, '"\\$ref" at # .*example.com'),
        ({"properties": {"a": {"$ref": "b.json#/c"}}}, '"\\$ref" at #/properties/a .*b.json'),
        ({"$id": "http://a/b", "items": {"$ref": "c"}}, '"\\$ref" at #/items'),
        ({"$ref": "http://[/#a"}, "no URI"),
        ({"enum": []}, 'empty "enum" at #'),
        ({"items": {"anyOf": []}}, 'empty "anyOf" at #/items'),
        (False, "false"),
        ("{", "not JSON"),
        ("[]", "give an object"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_by_name(compiler, schema, name) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        compiler.compile(Guided(json_schema=schema))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", ["#/$defs/word", "#word", "other#/$defs/word", "http://a/other#word", "other"])
def test_references_within_the_schema_are_followed(compiler, text, reference) -> None:
    word = {"$anchor": "word", "type": "string", "maxLength": 2}
    other = {"$id": "other", "$defs": {"word": word}, "$ref": "#word"}
    schema = {
        "$id": "http://a/b",
        "$defs": {"word": word, "other": other},
        "type": "array",
        "items": {"$ref": reference},
    }
    assert decides(compiler, text, Guided(json_schema=schema), '["ab"]')
    assert not decides(compiler, text, Guided(json_schema=schema), '["abc"]')


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-02-30", "2024-04-31"]),
        ("time", ["23:59:59Z", "00:00:00.5+14:00"], ["23:58:60Z", "24:00:00Z", "12:00:00", "12:00:00+24:00"]),
        ("date-time", ["2024-02-29T00:00:00z"], ["2023-02-29T00:00:00Z", "2024-02-29T00:00:60Z", "2024-02-29"]),
        ("hostname", ["a", "a-b.c1", f"{'a' * 63}.b"], ["-a", "a-", "a..b", "xn--X", "a" * 64, "a." * 127 + "ab"]),
    ],
)
def test_formats_are_enforced_to_the_letter(compiler, text, form, right, wrong) -> None:
    schema = Guided(json_schema={"type": "string", "format": form})
    assert [decides(compiler, text, schema, json.dumps(one)) for one in right] == [True] * len(right)
    assert [decides(compiler, text, schema, json.dumps(one)) for one in wrong] == [False] * len(wrong)
    both = Guided(json_schema={"type": "string", "format": form, "pattern": f"^{right[0]}$", "maxLength": 300})
    assert [decides(compiler, text, both, json.dumps(one)) for one in right] == [True] + [False] * (len(right) - 1)


def test_a_schema_thousands_of_levels_deep_is_refused(compiler) -> None:
    with pytest.raises(UsageError):
        compiler.compile(Guided(json_schema='{"items":' * 3000 + "true" + "}" * 3000))


@pytest.mark.parametrize(
    ("guided", "name"),
    [
        (Guided(regex="a(?=b)"), "look-around"),
        (Guided(regex=r"(a)\1"), "backreferences"),
        (Guided(grammar="start: foo"), "foo"),
        (Guided(grammar="root ::= ("), "Lark nor GBNF|Expected|unexpected"),
        (Guided(grammar='start: %json {"uniqueItems": true, "x-guidance": {"lenient": true}}'), "uniqueItems"),
    ],
)
def test_patterns_and_grammars_that_cannot_be_honoured_are_refused(compiler, guided, name) -> None:
    with pytest.raises(UsageError, match=name):
        compiler.compile(guided)


@pytest.mark.parametrize(
    "given", [{}, {"json_object": True, "regex": "a"}, {"choice": []}, {"choice": "ab"}, {"choice": [1]}]
)
def test_exactly_one_kind_is_asked_for(given) -> None:
    with pytest.raises(UsageError):
        Guided(**given)


@pytest.mark.parametrize(
    ("guided", "accepted", "refused"),
    [
        (Guided(regex=r"[a-c]{2}\d?"), ["ab", "cc7"], ["a", "ad", "ab77", "xab"]),
        (Guided(regex=r"^\d+$"), ["1", "123"], ["", "1a"]),
        (Guided(regex="(日|é)+"), ["日é日"], ["日x", ""]),
        (Guided(choice=["yes", "no", "yes, please", 'say "é"\n']), ["yes", "no", "yes, please", 'say "é"\n'], ["ye"]),
        (Guided(json_object=True), ['{"a": [1, {"b": null}]}', "{}"], ["[]", "1", '{"a"}', "{} "]),
        (Guided(grammar='start: "a"+ NUMBER\nNUMBER: /[0-9]{2}/'), ["aa12"], ["a1", "12"]),
        (Guided(grammar='root ::= "x" digit*\ndigit ::= [0-9]'), ["x", "x12"], ["", "1"]),
        (Guided(json_schema='{"type": "integer"}'), ["12", "-3"], ["1.5", '"1"']),
        (Guided(json_schema=True), ["12", "[{}]"], ["nul"]),
    ],
)
def test_other_kinds_accept_what_they_say(compiler, text, guided, accepted, refused) -> None:
    assert [decides(compiler, text, guided, one) for one in accepted] == [True] * len(accepted)
    assert [decides(compiler, text, guided, one) for one in refused] == [False] * len(refused)


def test_ids_that_no_token_has_are_never_allowed(compiler) -> None:
    allowed = compiler.compile(Guided(grammar="start: <[*]>")).matcher().allowed()
    assert len(allowed) == VOCAB and allowed[:267].sum() > 200 and not allowed[267:].any()


def test_a_tokenizer_with_more_ids_than_the_model_and_one_with_byte_fallback(text) -> None:
    small = GuidedCompiler(text.tokenizer_json(), vocab_size=264, stop_ids=(EOS, TURN_END))
    matcher = small.compile(Guided(choice=["a"])).matcher()
    assert len(matcher.allowed()) == 264 and matcher.push(text.encode("a")[0])
    small.close()
    llama = Text(byte_fallback_tokenizer(), plain_manifest().tokens)
    fallback = GuidedCompiler(llama.tokenizer_json(), vocab_size=300, stop_ids=(2,))
    matcher = fallback.compile(Guided(choice=["é"])).matcher()
    assert np.flatnonzero(matcher.allowed()).tolist() == [3 + "é".encode()[0]]
    fallback.close()


def test_a_model_without_stop_tokens_is_refused(text) -> None:
    with pytest.raises(UsageError, match="stop token"):
        GuidedCompiler(text.tokenizer_json(), vocab_size=VOCAB, stop_ids=())


def test_bits_become_booleans_lowest_first() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, size=4, dtype=np.uint32)
    wanted = [bool(int(bits[at // 32]) >> at % 32 & 1) for at in range(128)]
    assert unpack(bits.tobytes(), 128).tolist() == wanted
    assert unpack(bits.tobytes(), 130).tolist() == [*wanted, False, False]


def test_others_in_the_batch_get_what_they_get_alone(compiler, text) -> None:
    alone = {}
    prompts = {(5, 6, 7): None, (9,): Guided(regex="[0-9]{20}"), (3, 3): Guided(json_schema=SCHEMAS["closed object"])}
    for prompt, guided in prompts.items():
        engine = new_engine(text, slots=1)
        one = Asked(engine, compiler, prompt=prompt, guided=guided, max_tokens=60)
        drain(engine)
        alone[prompt] = one.ids()
    engine = new_engine(text)
    together = {
        prompt: Asked(engine, compiler, prompt=prompt, guided=guided, max_tokens=60)
        for prompt, guided in prompts.items()
    }
    drain(engine)
    assert {prompt: one.ids() for prompt, one in together.items()} == alone
    assert re.fullmatch("[0-9]{20}", together[9,].answer())


def test_sequences_of_one_prompt_each_keep_the_rules(compiler, text) -> None:
    engine = new_engine(text, slots=3)
    asked = Asked(engine, compiler, guided=Guided(regex="[a-z]{12}"), n=3, temperature=2.0, seed=4)
    drain(engine)
    answers = [asked.answer(index) for index in range(3)]
    assert all(re.fullmatch("[a-z]{12}", one) for one in answers) and len(set(answers)) == 3
    assert asked.reasons == ["stop"] * 3


def test_what_ends_an_answer(compiler, text) -> None:
    engine = new_engine(text, slots=8)
    cut = Asked(engine, compiler, guided=Guided(regex="[a-d]{12}"), max_tokens=5)
    exact = Asked(engine, compiler, guided=Guided(regex="[a-d]{12}"), max_tokens=12)
    # The stop tokens are the likeliest by far wherever the grammar lets them.
    eager = {TURN_END: 100.0}
    soon = Asked(engine, compiler, guided=Guided(regex="[a-d]+"), logit_bias=eager, max_tokens=40)
    late = Asked(engine, compiler, guided=Guided(regex="[a-d]+"), logit_bias=eager, max_tokens=40, min_tokens=9)
    deaf = Asked(engine, compiler, guided=Guided(regex="[a-d]{2,20}"), logit_bias=eager, ignore_eos=True)
    short = Asked(engine, compiler, guided=Guided(choice=["ab"]), max_tokens=40, min_tokens=9)
    drain(engine)
    assert (len(cut.answer()), cut.reasons) == (5, ["length"])
    assert (len(exact.answer()), exact.reasons, exact.heard[-1].stop_reason) == (12, ["stop"], None)
    assert (len(soon.answer()), soon.ids()[-1], soon.heard[-1].stop_reason) == (1, TURN_END, TURN_END)
    assert (len(late.answer()), late.reasons) == (9, ["stop"])
    assert (len(deaf.answer()), deaf.reasons) == (20, ["stop"])
    assert (short.answer(), short.reasons) == ("ab", ["stop"])


def test_a_stop_string_ends_a_guided_answer_and_is_left_out(compiler, text) -> None:
    engine = new_engine(text)
    asked = Asked(engine, compiler, guided=Guided(choice=["first; second"]), stop=";")
    drain(engine)
    assert (asked.answer(), asked.reasons, asked.heard[-1].stop_reason) == ("first", ["stop"], ";")


def test_a_bias_cannot_lift_what_the_grammar_forbids_and_penalties_apply(compiler, text) -> None:
    engine = new_engine(text)
    (x,) = text.encode("x")
    asked = Asked(engine, compiler, guided=Guided(regex="[ab]{30}"), logit_bias={x: 100.0}, frequency_penalty=2.0)
    drain(engine)
    assert set(asked.answer()) == {"a", "b"} and abs(asked.answer().count("a") - 15) <= 3


def test_a_cached_prefix_and_a_cancelled_neighbour_change_nothing(compiler, text) -> None:
    engine = new_engine(text, slots=2)
    prompt, guided = tuple(range(40)), Guided(json_schema=SCHEMAS["closed object"])
    first = Asked(engine, compiler, prompt=prompt, guided=guided)
    gone = Asked(engine, compiler, prompt=(7,), guided=Guided(regex="[a-z]{900}"))
    for _ in range(5):
        engine.step()
    engine.cancel(gone.request.number)
    drain(engine)
    again = Asked(engine, compiler, prompt=prompt, guided=guided)
    drain(engine)
    assert again.heard[0].cached_tokens == 39 and again.ids() == first.ids()
    assert engine.slots.free == 2


def test_an_engine_never_answers_unguided_where_guided_was_asked() -> None:
    engine = Engine(FakeSession(vocab_size=VOCAB), stop_ids=STOPS)
    with pytest.raises(UsageError, match="LLM"):
        engine.add(Request(prompt_ids=[1], params=SamplingParams(guided=Guided(regex="a")), sink=print))


def test_a_grammar_that_no_token_can_continue_ends_its_request_alone(text) -> None:
    class Broken:
        def matcher(self) -> Any:
            return self

        def allowed(self) -> Any:
            raise EngineError("too complex")

    engine = new_engine(text)
    heard: list[Any] = []
    params = SamplingParams(guided=Guided(regex="a"))
    engine.add(Request(prompt_ids=[1], params=params, sink=heard.append, grammar=Broken()))
    drain(engine)
    assert [str(one) for one in heard] == ["too complex"] and engine.slots.free == 4


def test_a_missing_library_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from megrez.runtime.serving.guided import GuidedCompiler\n"
        "from megrez.runtime.errors import MissingExtraError\n"
        "try: GuidedCompiler('{}', vocab_size=9, stop_ids=(1,))\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'megrez-compile[serve]'" in done.stdout, done.stderr
    assert issubclass(MissingExtraError, Exception)
