"""`megrez-compile` as a user meets it: exit codes, one line per error, bundles that decode as transformers does."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.numpy

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.cli import compile_command
from megrez.compile.families.registry import families
from megrez.engines.targets import TARGETS
from megrez.runtime.bundle import open_bundle
from megrez.runtime.model import Model
from megrez.runtime.sampling import SamplingParams
from tests.models import make_checkpoint
from tests.reference import greedy

SHAPES: dict[str, dict[str, Any]] = {
    **{family.model_type: {"family": family.model_type} for family in families()},
    "llama-biases": {"biases": True},
    "mistral-window-tied": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows-tied": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "bfloat16": {"dtype": "bfloat16"},
}
# Where a test is not about calibration.
RTN = ("--algorithm", "rtn", "--fidelity-tokens", 0)
PROMPTS = [np.random.default_rng(seed).integers(0, 320, length).tolist() for seed, length in enumerate((1, 9, 30))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_one_error(done: Any, code: int, *said: str) -> None:
    """One line on stderr after those that tell the stages, and nothing on stdout."""
    told = [line for line in done.err.splitlines() if not line.lstrip().startswith(("[", "layers", "weights"))]
    assert (done.code, done.out, len(told)) == (code, "", 1), done.err
    assert told[0].startswith("error: ") and "Traceback" not in done.err
    for part in said:
        assert part in told[0]


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_answers_are_those_of_transformers(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, name: str
) -> None:
    folder = checkpoint_of(**SHAPES[name])
    assert megrez_compile(folder, "--target", "cpu-fp32", "-o", tmp_path / "b", "--context", 64).code == 0
    with Model.open(tmp_path / "b", threads=1, verify=True) as model:
        for prompt in PROMPTS:
            pieces = list(model.stream_ids(prompt, SamplingParams(), max_tokens=12))
            assert [piece.token for piece in pieces] == greedy(folder, prompt, 12)


def test_json_has_exactly_the_fields_promised(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", "--json")
    assert done.code == 0 and done.out.count("\n") == 1
    answer = json.loads(done.out)
    assert list(answer) == ["bundle", "seconds", "peak_rss_bytes"]
    assert answer["bundle"] == str(tmp_path / "b")
    assert answer["seconds"] > 0 and answer["peak_rss_bytes"] > 10_000_000
    assert names(tmp_path) == ["b"]


def test_without_json_stdout_names_the_next_command(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int8", "-o", tmp_path / "b", *RTN)
    assert done.code == 0 and f"megrez run {tmp_path / 'b'} PROMPT" in done.out
    bare, spaced = checkpoint_of(tokenizer=False), tmp_path / "a b"
    done = megrez_compile(bare, "--target", "cpu-int8", "-o", spaced)
    assert done.code == 0 and f"try  megrez bench '{spaced}'\n" in done.out
    done = megrez_compile(checkpoint_of(), "--target", "cuda-fp16", "-o", tmp_path / "g")
    assert done.code == 0 and f"try  megrez inspect {tmp_path / 'g'}  here, and  megrez run" in done.out


@pytest.mark.parametrize(("asked", "given"), [([], 512), (["--context", 1], 1), (["--context", 512], 512)])
def test_context(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, asked: list[Any], given: int) -> None:
    assert megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", *asked, *RTN).code == 0
    assert open_bundle(tmp_path / "b").manifest.context_length == given


@pytest.mark.parametrize("target", ["cpu-int8", "cuda-int4", "qnn-w8a16"])
def test_a_context_too_short_to_calibrate_on(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, target: str
) -> None:
    chip = ("--arch", "v79") if target.startswith("qnn") else ()
    done = megrez_compile(checkpoint_of(), "--target", target, "-o", tmp_path / "b", "--context", 1, *chip)
    assert_one_error(done, 2, "--context is 1: calibration and fidelity need samples of at least 2 tokens: choose 2")
    assert names(tmp_path) == []


def test_a_context_of_two_tokens_answers_as_transformers_does(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path
) -> None:
    folder = checkpoint_of()
    for context in (1, 2):
        output = tmp_path / str(context)
        assert megrez_compile(folder, "--target", "cpu-fp32", "-o", output, "--context", context).code == 0
    with Model.open(tmp_path / "2", threads=1) as model:
        pieces = list(model.stream_ids([7], SamplingParams(), max_tokens=1))
        assert [piece.token for piece in pieces] == greedy(folder, [7], 1)


def test_the_output_is_named_after_model_and_target(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{checkpoint_of().name}-cpu-fp32"
    assert megrez_compile(checkpoint_of(), "--target", "cpu-fp32").code == 0
    assert names(tmp_path) == [name] and open_bundle(tmp_path / name).manifest.target == "cpu-fp32"
    before = (tmp_path / name / "manifest.json").stat().st_mtime_ns
    done = megrez_compile(checkpoint_of(), "--target", "cpu-fp32")
    assert_one_error(done, 2, f"{name} exists already: name it with  -o {name}  to replace it, or choose another -o")
    assert (tmp_path / name / "manifest.json").stat().st_mtime_ns == before and names(tmp_path) == [name]


def test_help_lists_every_option_once_in_a_section_with_one_sentence(megrez_compile: Any) -> None:
    done = megrez_compile("--help")
    assert done.code == 0
    titles = ["Common", "Model", "Precision", "Calibration", "Engine", "NPU", "Other"]
    assert [line[:-1] for line in done.out.splitlines() if line.endswith(":") and line[0] != " "] == titles
    for option in (one for one in compile_command.params if isinstance(one, click.Option)):
        assert done.out.count(f"  {option.opts[-1]} ") + done.out.count(f", {option.opts[-1]} ") == 1, option.name
        sentence = str(option.help).partition("  [default: ")[0]
        assert sentence[0].isupper() and sentence.endswith("."), option.name
        assert (
            option.is_flag
            or option.required
            or "[default:" in f"{option.help}"
            or option.show_default
            or (option.name in ("target", "stage", "max_kl", "scales"))
        ), option.name


@pytest.mark.parametrize("asked", [0, -1, 513])
def test_a_context_the_model_was_not_made_for(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, asked: int
) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", "--context", asked)
    assert_one_error(done, 2, f"--context is {asked}, this model takes 1 to 512: choose one of these")
    assert names(tmp_path) == []


def test_an_unknown_target(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int44", "-o", tmp_path / "b")
    assert_one_error(done, 2, "unknown target 'cpu-int44': did you mean cpu-int4?")
    assert names(tmp_path) == []


def test_layers_without_dummy_weights(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", "--layers", 1)
    assert_one_error(done, 2, "--layers", "--dummy-weights")
    assert names(tmp_path) == []


def test_dummy_weights_by_seed_and_layers(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    config = checkpoint_of() / "config.json"
    options = ("--target", "cpu-int4", "--dummy-weights", "--layers", 2)
    for name, seed in (("a", 1), ("same", 1), ("other", 2)):
        assert megrez_compile(config, *options, "-o", tmp_path / name, "--seed", seed).code == 0
    manifest = open_bundle(tmp_path / "a", verify=True).manifest
    assert (manifest.provenance.weights, manifest.architecture.num_hidden_layers) == ("dummy", 2)
    first, same, other = ((tmp_path / name / "model.onnx.data").read_bytes() for name in ("a", "same", "other"))
    assert first == same != other


@pytest.mark.parametrize(
    "arguments", [[], ["--target", "cpu-int4"], ["m", "--target", "cpu-int4", "-o", "x", "--what"]]
)
def test_misuse_of_the_command_line(megrez_compile: Any, arguments: list[str]) -> None:
    done = megrez_compile(*arguments)
    assert (done.code, done.out) == (2, "") and "Usage: megrez-compile" in done.err


def test_the_table_of_targets_needs_no_model(megrez_compile: Any) -> None:
    done = megrez_compile("--list-targets")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == ["TARGET", *(target.name for target in TARGETS)]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_is_no_bundle_stays_untouched(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, kind: str
) -> None:
    kept = tmp_path / "b" / "thesis.txt" if kind == "folder" else tmp_path / "b"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b")
    assert_one_error(done, 2, f"{tmp_path / 'b'} exists and is not a bundle")
    assert kept.read_text() == "years of work" and names(tmp_path) == ["b"]


def test_the_current_folder_is_no_output(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for output in (".", tmp_path / "empty", "..", "../empty/../empty"):
        done = megrez_compile(checkpoint_of(), "--target", "cpu-fp32", "-o", output)
        assert_one_error(done, 2, f"{output} is the current folder or contains it: choose another -o")
    assert names(tmp_path) == ["empty"] and names(tmp_path / "empty") == []


def test_heads_that_onnxruntime_cannot_run(megrez_compile: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", head_dim=40)
    for target in ("cpu-fp32", "cpu-int4", "cuda-fp16"):
        done = megrez_compile(folder, "--target", target, "-o", tmp_path / "b")
        assert_one_error(done, 2, f"{target} needs a head_dim that is a multiple of 16, this model has 40")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "cpu-fp32", "--algorithm", "gptq"], "cpu-fp32 quantises nothing of {}: leave --algorithm out"),
        (["--target", "cpu-fp32", "--calib", "t.txt"], "cpu-fp32 quantises nothing of {}: leave --calib out"),
        (["--target", "cpu-int4", "--dummy-weights", "--algorithm", "gptq"], "random weights cannot be calibrated"),
        (["--target", "cpu-int4", "--max-kl", "nan"], "--max-kl is nan: give a positive number"),
    ],
)
def test_options_that_would_do_nothing(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, options: list[str], said: str
) -> None:
    done = megrez_compile(checkpoint_of(), *options, "-o", tmp_path / "b")
    assert_one_error(done, 2, said.format(checkpoint_of().name))


def test_an_older_bundle_is_replaced_by_a_whole_one_only(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path
) -> None:
    target = ("--target", "cpu-int8", "-o", tmp_path / "b", *RTN)
    assert megrez_compile(checkpoint_of(), *target).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    broken = poisoned(make_checkpoint(tmp_path / "broken"), "model.layers.1.mlp.down_proj.weight")
    assert megrez_compile(broken, *target).code == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    assert megrez_compile(checkpoint_of(family="qwen3"), *target).code == 0
    assert open_bundle(tmp_path / "b", verify=True).manifest.architecture.model_type == "qwen3"
    assert names(tmp_path) == ["b", "broken"]


def poisoned(folder: Path, name: str) -> Path:
    """The checkpoint with one NaN in the tensor `name`."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[3] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("model.embed_tokens.weight", "cpu-int4"),
        ("model.layers.0.self_attn.k_proj.weight", "cpu-fp32"),
        ("model.layers.0.self_attn.k_proj.weight", "cpu-int4"),
        ("model.layers.0.self_attn.k_proj.bias", "cpu-int8"),
        ("model.layers.1.self_attn.q_norm.weight", "cpu-int4"),
        ("lm_head.weight", "cpu-int8"),
    ],
)
def test_a_nan_is_one_line_that_names_the_tensor(megrez_compile: Any, tmp_path: Path, name: str, target: str) -> None:
    folder = poisoned(make_checkpoint(tmp_path / "model", family="qwen3", biases=True), name)
    done = megrez_compile(folder, "--target", target, "-o", tmp_path / "b")
    assert_one_error(done, 1, name, "NaN")
    assert names(tmp_path) == ["model"]


def test_a_missing_shard(megrez_compile: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", sharded=True)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    done = megrez_compile(folder, "--target", "cpu-int4", "-o", tmp_path / "b")
    assert_one_error(done, 1, gone.name)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kept", [0, 7, 100, 50_000])
def test_a_truncated_file(megrez_compile: Any, tmp_path: Path, kept: int) -> None:
    folder = make_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    done = megrez_compile(folder, "--target", "cpu-int4", "-o", tmp_path / "b")
    assert_one_error(done, 1, "model.safetensors", "download it again")
    assert names(tmp_path) == ["model"]


def test_a_model_that_is_not_there(megrez_compile: Any, tmp_path: Path) -> None:
    done = megrez_compile(tmp_path / "none", "--target", "cpu-int4", "-o", tmp_path / "b")
    assert_one_error(done, 1, f"{tmp_path / 'none'} does not exist")
    assert names(tmp_path) == []


def test_a_full_disk_is_seen_before_it_is_full(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megrez.compile.bundle.output.shutil.disk_usage", lambda path: type("Usage", (), {"free": 99}))
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", *RTN)
    assert_one_error(done, 1, "free some space or choose another -o")
    assert names(tmp_path) == []


@pytest.mark.parametrize("older", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_new(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    target = ("--target", "cpu-int4", "-o", tmp_path / "b", *RTN)
    before = {}
    if older:
        assert megrez_compile(checkpoint_of(), *target).code == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    monkeypatch.setattr("megrez.engines.onnx_files.DATA_FILE", "/dev/full")
    done = megrez_compile(checkpoint_of(), *target)
    assert_one_error(done, 1, f"the disk of {tmp_path / 'b'} is full")
    assert names(tmp_path) == (["b"] if older else [])
    assert not older or {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_sizes_told_before_and_while_writing_agree(checkpoint_of: Any, tmp_path: Path, traced_once: None) -> None:
    from megrez.compile.pipeline import Request, compile_bundle
    from megrez.engines.targets import find_target

    totals: list[int] = []
    written: list[int] = []

    class Heard:
        def stage(self, name: str) -> None:
            pass

        def weights(self, total: int) -> Any:
            totals.append(total)
            return written.append

        def layers(self, total: int) -> Any:
            return lambda done: None

    checkpoint = open_checkpoint(str(checkpoint_of()))
    request = Request(
        checkpoint=checkpoint,
        target=find_target("cpu-fp32"),
        output=tmp_path / "b",
        context=None,
    )
    assert compile_bundle(request, Heard()) == tmp_path / "b"
    on_disk = (tmp_path / "b" / "model.onnx.data").stat().st_size
    # Every tensor but the last is padded to a page.
    assert sum(written) <= on_disk <= totals[0] < sum(written) + 4096 * len(written)
