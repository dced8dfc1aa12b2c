"""megrez.runtime must work on a machine that has none of the compiler's libraries."""

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors", "onnxruntime",
             "starlette", "uvicorn", "prometheus_client", "llguidance"):
    sys.modules[name] = None

import pkgutil
import megrez.runtime
others = ("megrez.runtime.serving.http", "megrez.runtime.commands.serve", "megrez.runtime.capi.libmegrez")  # [serve]; C
for module in pkgutil.walk_packages(megrez.runtime.__path__, "megrez.runtime."):
    if not module.name.startswith(others):
        __import__(module.name)

from megrez.runtime import LLM, Bundle, Completion, MegrezError, Model, Piece, SamplingParams, open_bundle
from megrez.runtime.generate import generate
from megrez.runtime.session import FakeSession

steps = generate(FakeSession(vocab_size=100), [1, 2, 3], SamplingParams(), stop_ids={24}, max_tokens=9)
print([step.token for step in steps])
"""


def test_the_runtime_imports_and_generates_without_the_compilers_libraries():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[6, 12, 24]\n"


def test_importing_the_package_loads_no_third_party_module():
    program = "import sys, megrez.runtime; print('numpy' in sys.modules, 'click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
