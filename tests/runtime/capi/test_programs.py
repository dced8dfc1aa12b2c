"""Programs that are no Python: the library starts one, and leaves the rest of the process alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from megrez.runtime.capi.build_ext import LINK_FLAGS
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.commands.run import run_command
from tests.runtime.capi.conftest import CAPI, ROOT, STRICT, compile_library
from tests.runtime.capi.sums import alone, encode, spoken
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer

# Sanitizers leave symbols for the program to define.
LINK_FLAGS_OF_SANITIZERS = [one for one in LINK_FLAGS if "undefined" not in one]
HERE = Path(__file__).parent
HANG_S = 300
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of an environment like this one, whose Python has the engines of fake_engine.py too."""
    folder = tmp_path_factory.mktemp("environment")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n")
    ours = Path(sys.prefix) / "lib" / version / "site-packages"
    lines = (f"import site; site.addsitedir({str(ours)!r})", str(ROOT))
    install = "import tests.runtime.capi.fake_engine as one; one.install()"
    (packages / "fake.pth").write_text("\n".join((*lines, install)) + "\n")
    program = folder / "bin" / "python"
    program.symlink_to(Path(sys.base_prefix) / "bin" / version)
    return program


def compile_program(compiler: str, source: Path, library: Path, output: Path, *flags: str) -> Path:
    base = [compiler, *STRICT, "-Wpedantic", f"-I{CAPI / 'include'}", *flags, str(source), "-o", str(output)]
    subprocess.run([*base, f"-L{library.parent}", "-lmegrez", f"-Wl,-rpath,{library.parent}", "-lpthread"], check=True)
    return output


def run(
    program: Path, *args: object, python: Path | str, text: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "MEGREZ_PYTHON": str(python), **more}
    done = subprocess.run(
        [program, *map(str, args)], env=variables, capture_output=True, input=text, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done
    return done


@pytest.fixture(scope="session")
def probe(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("probe") / "probe"
    flags = [*STRICT, f"-I{CAPI / 'include'}", "-std=gnu11", "-rdynamic"]
    subprocess.run([compiler, *flags, HERE / "probe.c", "-o", output, "-ldl", "-lpthread"], check=True)
    return output


@pytest.mark.parametrize(
    "steps",
    [
        "leaves_the_host_alone keeps_sigint refuses_a_forked_child survives_dlclose exits_without_close",
        "starts_in_many_threads exits_within_a_callback",
        "exits_before_a_piece_is_taken",
    ],
)
def test_a_host_that_is_no_python(probe, library, bundles, python, steps):
    done = run(probe, library, bundles["slow"], *steps.split(), python=python)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_a_host_of_onnxruntime(probe, library, ort_bundle, python):
    """Its threads, and what it does as it is loaded and unloaded, are nobody else's concern either."""
    steps = "leaves_the_host_alone keeps_sigint refuses_a_forked_child survives_dlclose exits_without_close"
    done = run(probe, library, ort_bundle[1], *steps.split(), python=python)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_a_host_of_onnxruntime_exits_before_it_takes_a_piece(probe, library, ort_bundle, python):
    """The engine is stopped before what it uses is destroyed, however soon it is told."""
    done = run(probe, library, ort_bundle[1], "registers_destructors_only_as_it_opens", python=python)
    assert (done.stdout, done.stderr) == ("ok\n", "")
    done = run(probe, library, ort_bundle[1], "exits_before_a_piece_is_taken", python=python)
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.slow
def test_a_host_of_onnxruntime_exits_at_any_time(probe, library, ort_bundle, python):
    for at in range(50):
        delay, step = str(200 * at), "exits_before_a_piece_is_taken" if at % 5 else "exits_without_close"
        done = run(probe, library, ort_bundle[1], step, python=python, MEGREZ_PROBE_US=delay)
        assert (done.stdout, done.stderr) == ("ok\n", "")


def test_the_python_of_the_environment_that_the_library_lies_in_is_found(probe, library, bundles, python):
    """As PREFIX/lib/pythonX.Y/site-packages/megrez/runtime/capi/libmegrez.so."""
    folder = python.parents[1] / "lib" / "python3" / "site" / "megrez" / "runtime" / "capi"
    folder.mkdir(parents=True)
    copied = shutil.copy(library, folder)
    done = run(probe, copied, bundles["fake"], "survives_dlclose", python="")
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_the_python_of_a_folder_whose_links_were_copied_as_files_is_found(probe, library, bundles, python):
    """As PREFIX/lib/libmegrez.so, beside PREFIX/lib/pythonX.Y/site-packages/megrez."""
    (packages,) = python.parents[1].glob("lib/python3.*/site-packages")
    (packages / "megrez").mkdir()
    (packages / "megrez" / "runtime").symlink_to(ROOT / "runtime")
    copied = shutil.copy(library, python.parents[1] / "lib")
    done = run(probe, copied, bundles["fake"], "survives_dlclose", python="")
    shutil.rmtree(packages / "megrez")
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("/no/such/python", "MEGREZ_PYTHON is /no/such/python, which is no program"),
        ("/bin/sh", "MEGREZ_PYTHON is /bin/sh, which is no Python 3."),
    ],
)
def test_a_python_that_is_missing_or_another(probe, library, bundles, setting, told):
    done = run(probe, library, bundles["fake"], "fails_to_open", python=setting)
    assert done.stdout.startswith(told) and done.stdout.count("\n") == 2 and done.stderr == ""


def test_a_python_without_the_package(probe, library, bundles, tmp_path):
    """A bare environment: our folder is found neither there nor beside the library."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n")
    program = tmp_path / "bin" / "python"
    program.symlink_to(sys.executable)
    done = run(probe, library, bundles["fake"], "fails_to_open", python=program)
    told, _ = done.stdout.splitlines()
    assert told.startswith("Python runs and has no working megrez-compile: run  pip install")
    assert told.endswith("(No module named 'megrez')")


@pytest.fixture(scope="session")
def examples(compiler: str, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile an example as its users do, once."""
    folder = tmp_path_factory.mktemp("examples")

    def build(name: str) -> Path:
        source = ROOT / "examples" / "embedding" / name
        output = folder / source.stem
        if source.suffix == ".cpp":
            cpp = shutil.which("c++")
            if cpp is None:
                pytest.skip("needs a C++ compiler")
            return compile_program(cpp, source, library, output, "-std=c++17")
        return compile_program(compiler, source, library, output, "-std=c99")

    return build


def answer(prompt: str, count: int) -> tuple[str, list[int]]:
    """The sum rule's text and ids."""
    ids = alone(encode(byte_level_tokenizer(), prompt), count)
    return spoken(byte_level_tokenizer(), ids), ids


def test_the_single_shot_example(examples, bundles, python):
    done = run(examples("single.c"), bundles["fake"], 'say "hi"', '{"max_tokens": 12}', python=python)
    prompt = ChatTemplate(MEGREZ_TEMPLATE).render([{"role": "user", "content": 'say "hi"'}])
    assert done.stdout == answer(prompt, 12)[0] + "\n"


def test_the_streaming_example(examples, bundles, python):
    done = run(examples("stream.c"), bundles["fake"], "hello", '{"max_tokens": 12}', python=python)
    text, ids = answer("hello", 12)
    assert done.stdout == text + "\n" + "".join(f"{one} " for one in ids) + "\n"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 11}])
def test_a_c_program_answers_as_megrez_run_does(examples, ort_bundle, python, sampling):
    checkpoint, bundle = ort_bundle
    request = json.dumps({"max_tokens": 16, **sampling})
    done = run(examples("stream.c"), bundle, "the sea and", request, python=python)
    options = [part for name, value in sampling.items() for part in (f"--{name}", str(value))]
    arguments = [str(bundle), "the sea and", "--raw", "--json", "--max-tokens", "16", *options]
    told = json.loads(CliRunner().invoke(run_command, arguments, catch_exceptions=False).stdout)
    text, _, ids = done.stdout.rstrip("\n").rpartition("\n")
    assert list(map(int, ids.split())) == told["token_ids"]
    assert text.splitlines() == told["text"].splitlines()  # reading a program's output changes the ends of lines
    if not sampling:
        from tests.reference import greedy

        prompt = encode(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), "the sea and")
        assert told["token_ids"] == greedy(checkpoint, prompt, 16)


def test_the_schema_example(examples, bundles, python):
    done = run(examples("schema.c"), bundles["fake"], python=python)
    found = json.loads(done.stdout, strict=False)
    assert set(found) == {"name", "age"} and 0 <= found["age"] <= 120 and len(found["name"]) <= 12


def test_the_example_that_links_nothing(compiler, library, bundles, python, tmp_path):
    output = tmp_path / "load"
    flags = [*STRICT, "-Wpedantic", "-std=c99", f"-I{CAPI / 'include'}"]
    subprocess.run([compiler, *flags, ROOT / "examples" / "embedding" / "load.c", "-o", output, "-ldl"], check=True)
    done = run(output, library, bundles["fake"], "hello", python=python)
    assert done.stdout == answer("hello", 32)[0] + "\n"


def test_the_service_in_cpp(examples, bundles, python):
    questions = [f"question {at}" for at in range(12)]
    done = run(examples("service.cpp"), bundles["fake"], 3, python=python, text="\n".join(questions) + "\n")
    for question in questions:
        prompt = ChatTemplate(MEGREZ_TEMPLATE).render([{"role": "user", "content": question}])
        text, ids = answer(prompt, 64)
        assert f"{question}\n  {text}\n  {len(ids)} tokens\n" in done.stdout


@pytest.fixture(scope="session")
def stress(compiler: str, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("stress") / "stress"
    return compile_program(compiler, HERE / "stress.c", library, output, "-std=gnu11")


def test_eight_threads_with_cancels_at_random_get_the_answers_of_one(stress, bundles, python):
    done = run(stress, bundles["fake"], 8, 25, 1, python=python)
    assert done.stdout.strip().isdigit()


@pytest.mark.slow
def test_memory_stays_flat_over_requests_and_over_opening_and_closing(stress, bundles, python):
    run(stress, bundles["fake"], 8, 200, 2, python=python)
    done = run(stress, bundles["fake"], 2, 4, 100, python=python)
    resident = [int(one) for one in done.stdout.split()]
    assert len(resident) == 100
    assert max(resident[50:]) - max(resident[20:50]) < 1024  # KiB


@pytest.mark.slow
def test_eight_threads_get_the_answers_of_one_from_onnxruntime_too(stress, ort_bundle, python):
    assert run(stress, ort_bundle[1], 8, 25, 1, python=python).stdout.strip().isdigit()


@pytest.mark.slow
def test_memory_of_onnxruntime_stays_flat_too(stress, ort_bundle, python):
    """With prompts of several lengths from several threads; 6 MiB more after 60 rounds would be 0.1 MiB a round."""
    done = run(stress, ort_bundle[1], 2, 4, 120, python=python)
    resident = [int(one) for one in done.stdout.split()]
    assert len(resident) == 120
    assert max(resident[60:]) - max(resident[20:60]) < 1024  # KiB


def leaks_of_ours(report: str) -> list[str]:
    """Blocks that our C code allocated itself; what Python keeps until the process ends is no concern of ours."""
    blocks = [one for one in report.split("\n\n") if "leak of" in one]
    return [one for one in blocks if re.search(r"#1 .*[/ ](?:megrez|python|stress)\.c:", one)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_our_c_code_is_clean_under_sanitizers(compiler, bundles, python, tmp_path, kind):
    flags = [f"-fsanitize={kind}", "-g", "-O1", "-fno-omit-frame-pointer", "-std=gnu11"]
    try:
        library = compile_library(compiler, tmp_path / "libmegrez.so", *flags, link=LINK_FLAGS_OF_SANITIZERS)
        program = compile_program(compiler, HERE / "stress.c", library, tmp_path / "stress", *flags)
    except subprocess.CalledProcessError:
        pytest.skip(f"the compiler has no {kind} sanitizer")
    variables = {"ASAN_OPTIONS": "exitcode=0", "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}
    done = run(program, bundles["fake"], 4, 40, 2, python=python, **variables)
    faults = re.findall("ERROR: AddressS.*|runtime error:.*|WARNING: Thr.*", done.stderr)
    assert faults == [] and leaks_of_ours(done.stderr) == []


def test_a_leak_of_ours_is_seen():
    frames = "Direct leak of 9 byte(s) in 1 object(s) allocated from:\n    #0 0x1 in malloc a.cpp:6\n    #1 0x2 in {}"
    report = "\n\n".join(frames.format(one) for one in ("grow /x/megrez.c:40", "PyMem /x/libpython.so"))
    assert len(leaks_of_ours(report)) == 1
