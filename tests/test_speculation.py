"""Drafts on ONNX Runtime: real kernels' logits do not depend on the step's rows, so no answer changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime import LLM, SamplingParams
from megrez.runtime.serving.outputs import RequestOutput
from tests.reference import greedy

PROMPTS = [[7, 8, 9, 10, 7, 8, 9, 10, 7, 8], list(range(40, 90)) * 2]


def asks() -> list[tuple[list[int], SamplingParams]]:
    shared: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "logprobs": 3}
    varied: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7, "top_p": 0.9, "seed": 3, "n": 2},
        {"temperature": 0.3, "seed": 4, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
        {"prompt_logprobs": 2, "logit_bias": {9: 3.0}},
    ]
    return [(prompt, SamplingParams(**shared, **one)) for prompt in PROMPTS for one in varied]


def answers(bundle: Path, speculate: Any, draft: Path | None = None) -> tuple[list[RequestOutput], Any]:
    prompts, params = zip(*asks(), strict=True)
    with LLM(bundle, slots=3, context=160, threads=1, speculate=speculate, draft=draft) as llm:
        return llm.generate(list(prompts), list(params)), llm.speculation


def told(outputs: list[RequestOutput]) -> list[Any]:
    return [
        [(own.token_ids, own.text, own.logprobs, own.finish_reason) for own in one.outputs] + [one.prompt_logprobs]
        for one in outputs
    ]


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGREZ_KERNELS", "1")


DRAFTS = (("always", None), ("always", "small"), ("always", "large"), ("auto", "large"))


@pytest.mark.parametrize(
    ("target", "drafts"),
    [
        ("cpu-int4", DRAFTS),
        ("cpu-fp32", DRAFTS[2:3]),
        pytest.param("cpu-fp32", DRAFTS, marks=pytest.mark.slow),
    ],
    ids=["cpu-int4", "cpu-fp32", "cpu-fp32-every-draft"],
)
def test_answers_are_bit_for_bit_those_without_drafts(
    target: str, drafts: Any, checkpoint_of: Callable[..., Path], megrez_compile: Any, tmp_path: Path, own_kernels: None
) -> None:
    large, small = (tmp_path / name for name in ("large", "small"))
    assert megrez_compile(checkpoint_of(), "--target", target, "-o", large, "--context", 160).code == 0
    other = checkpoint_of(layers=1, seed=1)
    assert megrez_compile(other, "--target", "cpu-fp32", "-o", small, "--context", 160).code == 0
    plain, _ = answers(large, "off")
    for speculate, draft in drafts:
        found, totals = answers(large, speculate, draft and tmp_path / draft)
        assert told(found) == told(plain)
        if speculate == "always":
            assert totals.drafted > 100
        if draft == "large" and speculate == "always":
            assert totals.accepted > 2 * 30  # of two greedy sequences nearly all tokens
    if target == "cpu-fp32":
        assert list(plain[0].outputs[0].token_ids) == greedy(checkpoint_of(), PROMPTS[0], 40)


def test_run_reports_acceptance_and_refuses_another_tokenizer(
    checkpoint_of: Callable[..., Path], megrez_compile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    from megrez.runtime.commands.run import run_command

    bundle = tmp_path / "b"
    assert megrez_compile(checkpoint_of(), "--target", "cpu-fp32", "-o", bundle, "--context", 96).code == 0
    options = [str(bundle), "abcabcabcabc", "--raw", "--max-tokens", "60", "--temperature", "0", "--json"]
    figures = {}
    for speculate in ("off", "always"):
        done = CliRunner().invoke(run_command, [*options, "--speculate", speculate])
        assert done.exit_code == 0, done.output
        figures[speculate] = json.loads(done.stdout)
    assert figures["always"]["token_ids"] == figures["off"]["token_ids"]
    assert figures["off"]["drafted_tokens"] == 0 < figures["always"]["drafted_tokens"]
    drafted = CliRunner().invoke(run_command, [*options[:-1], "--speculate", "always", "--draft", str(bundle)])
    assert drafted.exit_code == 0 and " drafted ones accepted" in drafted.stderr
