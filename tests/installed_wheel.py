"""An installed wheel at work, outside the checkout and without the compiler's libraries; not a test: make wheel-check.

PYTHON -I tests/installed_wheel.py BUNDLE EXAMPLES  checks the installation of PYTHON, and needs cc.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

BIN = Path(sys.executable).parent
PROMPT, COUNT = "the sea and", 8
UNWANTED = ("torch", "transformers", "onnx", "onnxscript", "optimum", "safetensors", "gguf", "matplotlib")
# Each says what it did on stdout.
COMMANDS = {
    "run": ("run", "{bundle}", PROMPT, "--max-tokens", str(COUNT)),
    "bench": ("bench", "{bundle}", "--prompt-tokens", "8", "--output-tokens", "8", "--json"),
    "eval": ("eval", "{bundle}", "--text", "{text}", "--tokens", "64"),
    "inspect": ("inspect", "{bundle}"),
    "doctor": ("doctor",),
}


def megrez(*args: object, stdin: str = "") -> str:
    command = [str(BIN / "megrez"), *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd="/", timeout=600)
    assert done.returncode == 0, (command, done)
    return done.stdout


def check_what_is_installed() -> None:
    names = sorted(one.metadata["Name"].lower() for one in importlib.metadata.distributions())
    assert not set(UNWANTED).intersection(names), names
    files = {str(file) for file in importlib.metadata.files("megrez-compile") or []}
    wanted = ["runtime/py.typed", "runtime/capi/include/megrez.h", "runtime/capi/include/megrez.hpp"]
    wanted += ["runtime/capi/libmegrez.so", "runtime/capi/pkgconfig/megrez.pc", "runtime/serving/http/page.html"]
    wanted += [f"{part}/py.typed" for part in ("engines", "calibration", "compile")]
    assert {f"megrez/{file}" for file in wanted} <= files, files
    assert any(file.startswith("megrez/engines/ort/_kernels.") for file in files), files
    assert not any(file.startswith(("tests/", "benchmarks/")) for file in files), files
    print("installed:", ", ".join(names))


def check_commands(bundle: Path, folder: Path) -> str:
    """Returns the answer of `megrez run`."""
    (folder / "text.txt").write_text("The sea and the land in the end, and all the rest of it. " * 40)
    said = {}
    for name, arguments in COMMANDS.items():
        said[name] = megrez(*(one.format(bundle=bundle, text=folder / "text.txt") for one in arguments))
        assert said[name].strip(), name
    assert said["run"].strip() in megrez("chat", bundle, "--max-tokens", COUNT, stdin=f"{PROMPT}\n")
    print("commands:", ", ".join([*COMMANDS, "chat"]))
    return said["run"]


def check_server(bundle: Path) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
    began = time.monotonic()
    server = subprocess.Popen(
        [str(BIN / "megrez"), "serve", str(bundle), "--port", "0"], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://[\w.]+:\d+", server.stdout.readline())
        assert found is not None
        request = urllib.request.Request(
            f"{found[0]}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["usage"]["completion_tokens"] == 1, answer
        print(f"serve: answered {time.monotonic() - began:.2f} s after it was started")
    finally:
        server.terminate()
        server.wait(60)


def check_c_programs(bundle: Path, examples: Path, folder: Path, expected: str) -> None:
    """single.c answers as `megrez run` does; the others run."""
    flags = megrez("capi", "--cflags", "--libs").split()
    for name in ("single", "stream", "schema"):
        command = ["cc", "-std=c99", str(examples / f"{name}.c"), "-o", str(folder / name), *flags]
        subprocess.run(command, check=True)
    request = json.dumps({"max_tokens": COUNT})
    runs = {"single": [PROMPT, request], "stream": [PROMPT, request], "schema": []}
    for name, arguments in runs.items():
        command = [str(folder / name), str(bundle), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]})
        assert done.returncode == 0 and done.stdout, done
        assert name != "single" or done.stdout == expected, (done.stdout, expected)
    print("C programs:", ", ".join(runs))


def main() -> None:
    bundle, examples = (Path(one).resolve() for one in sys.argv[1:])
    spec = importlib.util.find_spec("megrez.runtime")
    assert spec is not None and "site-packages" in str(spec.origin), spec
    with tempfile.TemporaryDirectory() as folder:
        check_what_is_installed()
        expected = check_commands(bundle, Path(folder))
        check_server(bundle)
        check_c_programs(bundle, examples, Path(folder), expected)


if __name__ == "__main__":
    main()
