"""Do the tests notice a wrong product? Puts seeded faults into a copy of the tree, one at a time, and runs the tests.

    python tests/mutations.py [--only NAME] [--list]

First the named tests must pass without a fault; then each fault must fail its own. Prints caught or missed for each,
and exits with 1 where one was missed or could not be tried. Nothing is written to the working tree. Not run by pytest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "engines", "calibration", "compile")
PASSED, FAILED = 0, 1  # pytest's exit codes; above them, tests could not run
BUILD_KERNELS = ("-c", "from setuptools import setup; setup()", "-q", "build_ext", "--inplace")


class Unusable(Exception):
    """A fault that cannot be tried."""


@dataclass(frozen=True, slots=True)
class Fault:
    """old: text that `file` holds exactly once; with `new` in its place, pytest must fail on `tests`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def is_compiled(self) -> bool:
        return self.file.endswith((".c", ".h"))


DECODER = ("tests/calibration/reference/test_decoder.py",)
FIDELITY = ("tests/calibration/reference/test_fidelity.py",)
GPTQ = ("tests/calibration/weights/test_gptq.py",)
NEAREST = ("tests/calibration/weights/test_nearest.py",)
BLOCKS = ("tests/calibration/weights/test_blocks.py",)
SMOOTHING = ("tests/calibration/activations/test_smoothing.py",)
INPUTS = ("tests/calibration/activations/test_inputs.py",)
PASSES = "tests/compile/graph/passes"
PRODUCTS = ("tests/engines/ort/test_matmul_nbits.py",)
ATTENTION = ("tests/engines/ort/test_group_query_attention.py",)
CACHE_FORMATS = ("tests/engines/ort/test_cache_formats.py",)

FAULTS = (
    # calibration
    Fault("window-too-wide", "calibration/reference/decoder.py", "distance >= window", "distance > window", DECODER),
    Fault(
        "rope-half-swapped",
        "calibration/reference/decoder.py",
        "[first * cos - second * sin, second * cos + first * sin]",
        "[first * sin - second * cos, second * sin + first * cos]",
        DECODER,
    ),
    Fault(
        "kl-the-other-way",
        "calibration/reference/fidelity.py",
        "np.exp(truth) * (truth - model)",
        "np.exp(model) * (model - truth)",
        FIDELITY,
    ),
    Fault(
        "gptq-feedback-by-rows",
        "calibration/weights/gptq.py",
        "lower /= np.diag(lower).copy()",
        "lower /= np.diag(lower).copy()[:, None]",
        GPTQ,
    ),
    Fault(
        "gptq-error-of-compensated",
        "calibration/weights/gptq.py",
        "np.subtract(columns[k], grid",
        "np.subtract(value.copy(), grid",
        GPTQ,
    ),
    Fault(
        "middle-off-by-one",
        "calibration/weights/blocks.py",
        "middle = np.float32(2 ** (self.bits - 1))",
        "middle = np.float32(2 ** (self.bits - 1) - 1)",
        BLOCKS,
    ),
    Fault(
        "zero-point-not-added",
        "calibration/weights/nearest.py",
        "steps += zero[..., None]",
        "steps += 2 ** (weight_format.bits - 1)",
        NEAREST,
    ),
    Fault(
        "no-clip-below",
        "calibration/weights/ranges.py",
        "np.maximum(quotients, -zero, out=quotients)",
        "np.maximum(quotients, -zero - 1, out=quotients)",
        NEAREST,
    ),
    Fault(
        "smoothquant-exponent",
        "calibration/activations/smoothing.py",
        "np.log(weight_size) * (1 - exponent)",
        "np.log(weight_size) * exponent",
        SMOOTHING,
    ),
    Fault(
        "clipping-ratio-ignored",
        "calibration/activations/inputs.py",
        "np.float32(largest * ratio / data_type.largest)",
        "np.float32(largest / data_type.largest)",
        INPUTS,
    ),
    # passes
    Fault(
        "sine-for-cosine",
        "compile/graph/passes/split_rotary.py",
        "(first, cos), (second, sin), (second, cos), (first, sin)",
        "(first, sin), (second, cos), (second, sin), (first, cos)",
        (f"{PASSES}/test_split_rotary.py",),
    ),
    Fault(
        "bias-missing",
        "compile/graph/passes/quantize_weights.py",
        "matrix.zero_points, None, bias]",
        "matrix.zero_points, None, None]",
        (f"{PASSES}/test_quantize_weights.py",),
    ),
    Fault(
        "new-keys-before-old",
        "compile/graph/passes/explicit_attention.py",
        "[old_keys, new_keys]",
        "[new_keys, old_keys]",
        (f"{PASSES}/test_explicit_attention.py",),
    ),
    Fault(
        "nibbles-swapped",
        "compile/graph/packing.py",
        "codes[:, 1::2] << np.uint8(4)\n    packed |= codes[:, ::2]",
        "codes[:, ::2] << np.uint8(4)\n    packed |= codes[:, 1::2]",
        ("tests/compile/graph/test_packing.py",),
    ),
    Fault(
        "yarn-factor-missing",
        "compile/graph/rope.py",
        "np.sin(angles) * np.float32(factor)",
        "np.sin(angles)",
        ("tests/compile/graph/export/test_trace.py::test_rotary_tables_are_those_of_transformers",),
    ),
    # kernels
    Fault(
        "kernel-upper-zero-point",
        "engines/ort/kernels/products/products_streamed.h",
        "memcpy(&eight, points, sizeof eight);",
        "eight = points[0] * 0x01010101;",
        PRODUCTS,
    ),
    Fault(
        "kernel-bias-missing",
        "engines/ort/kernels/products/products_streamed.h",
        "sum_of(found[i]) + bias",
        "sum_of(found[i])",
        PRODUCTS,
    ),
    Fault(
        "kernel-lower-halves-twice",
        "engines/ort/kernels/products/block_sums.h",
        "joined(lower[i], upper[i], bits)",
        "joined(lower[i], lower[i], bits)",
        PRODUCTS,
    ),
    Fault(
        "kernel-first-block-counts-for-nothing",
        "engines/ort/kernels/products/products_tiled.h",
        "of->first + n < SUMS ? (wide_float){0}",
        "of->first + n < SUMS + 1 ? (wide_float){0}",
        PRODUCTS,
    ),
    Fault(
        "kernel-hides-the-token-itself",
        "engines/ort/kernels/attention/attention_passes.h",
        "megrez_least(end, position + 1) - start",
        "megrez_least(end, position) - start",
        ATTENTION,
    ),
    Fault(
        "kernel-parts-depend-on-the-query",
        "engines/ort/kernels/attention/attention_passes.h",
        "megrez_most(0, first + 1 - all->window) / KEYS * KEYS",
        "megrez_most(0, first + 1 - all->window)",
        ATTENTION,
    ),
    Fault(
        "kernel-window-off-by-one",
        "engines/ort/kernels/attention/attention_passes.h",
        "position + 1 - all->window - start",
        "position - all->window - start",
        ATTENTION,
    ),
    Fault(
        "kernel-value-scale-of-the-key",
        "engines/ort/kernels/attention/attention_cache.h",
        "n < count ? all->value_scales[first + n] : 0",
        "n < count ? all->key_scales[first + n] : 0",
        CACHE_FORMATS,
    ),
    # sessions and decoding
    Fault(
        "logits-of-another-column",
        "engines/arrange.py",
        "* width + batch.columns[wanted]",
        "* width",
        ("tests/engines/ort/test_session.py",),
    ),
    Fault(
        "slot-entry-not-swapped",
        "engines/slot_order.py",
        "self._entries[slots] = other, one",
        "self._entries[slots] = one, other",
        ("tests/engines/test_slot_order.py",),
    ),
    Fault(
        "stop-id-ignored",
        "runtime/serving/next_token.py",
        "(token in stop_ids and not params.ignore_eos)",
        "(token in () and not params.ignore_eos)",
        ("tests/runtime/test_generate.py",),
    ),
    Fault(
        "top-p-one-short",
        "runtime/sampling.py",
        "np.searchsorted(mass, goal)) + 1",
        "np.searchsorted(mass, goal))",
        ("tests/runtime/test_sampling.py",),
    ),
    # checkpoints
    Fault(
        "gguf-heads-interleaved",
        "compile/checkpoint/gguf/names.py",
        "config.head_dim // 2, 2).swapaxes(1, 2)",
        "2, config.head_dim // 2).swapaxes(1, 2)",
        ("tests/compile/checkpoint/gguf/test_checkpoint.py",),
    ),
    Fault(
        "bfloat16-shift",
        "compile/checkpoint/floats.py",
        "np.left_shift(raw, 16,",
        "np.left_shift(raw, 15,",
        ("tests/compile/checkpoint/test_huggingface.py",),
    ),
    Fault(
        "first-windowed-layer",
        "compile/families/windows.py",
        "if i >= first else None",
        "if i > first else None",
        ("tests/compile/families/test_config.py",),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests over seeded faults, in a copy of the tree.")
    parser.add_argument("--only", metavar="NAME", help="only this fault")
    parser.add_argument("--list", action="store_true", help="print the faults' names")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in (None, fault.name)]
    if not chosen:
        parser.error(f"no fault is named {options.only}: --list prints the names")
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        copy_tree(copy)
        return check(chosen, copy)


def check(faults: list[Fault], copy: Path) -> int:
    if run_tests(copy, dict.fromkeys(path for fault in faults for path in fault.tests)) != PASSED:
        print("the tests do not pass without a fault: correct that first", file=sys.stderr)
        return 1
    verdicts = {}
    for fault in faults:
        try:
            verdicts[fault.name] = "caught" if is_caught(fault, copy) else "MISSED"
        except Unusable as error:
            verdicts[fault.name] = f"ERROR: {error}"
        print(f"{fault.name}: {verdicts[fault.name]}", flush=True)
    caught = sum(verdict == "caught" for verdict in verdicts.values())
    print(f"{caught} of {len(verdicts)} faults caught")
    return 0 if caught == len(verdicts) else 1


def copy_tree(copy: Path) -> None:
    """The working tree as git sees it, uncommitted changes and compiled kernels included, and `megrez` made of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [str(path.relative_to(ROOT)) for path in (ROOT / "engines/ort").glob("_kernels*")]
    for name in [*listed.stdout.split("\0"), *kernels]:
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / "build/path/megrez").mkdir(parents=True)
    for package in PACKAGES:
        (copy / "build/path/megrez" / package).symlink_to(copy / package)


def is_caught(fault: Fault, copy: Path) -> bool:
    """Whether the fault's tests fail with it. The copy is as it was afterwards."""
    path = copy / fault.file
    before = path.read_bytes() if path.exists() else b""
    text = before.decode()
    if text.count(fault.old) != 1:
        raise Unusable(f"snippet found {text.count(fault.old)} times in {fault.file}: update the mutation")
    kernels = {one: one.read_bytes() for one in (copy / "engines/ort").glob("_kernels*")} if fault.is_compiled else {}
    try:
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        if fault.is_compiled:
            build_kernels(copy, kernels)
        code = run_tests(copy, fault.tests)
    finally:
        path.write_bytes(before)
        for one, compiled in kernels.items():
            one.write_bytes(compiled)
    if code not in (PASSED, FAILED):
        raise Unusable(f"pytest could not run {' '.join(fault.tests)} (exit code {code}): update the mutation")
    return code == FAILED


def build_kernels(copy: Path, old: Iterable[Path]) -> None:
    """Compile in place of `old`; the extension is optional to setuptools, so that a file is there is what counts."""
    for one in old:
        one.unlink()
    subprocess.run([sys.executable, *BUILD_KERNELS], cwd=copy, capture_output=True, check=False)
    if not list((copy / "engines/ort").glob("_kernels*")):
        raise Unusable("the kernels do not compile with it: a C compiler is needed, or update the mutation")


def run_tests(copy: Path, paths: Iterable[str]) -> int:
    """pytest's exit code, from the quick tests among `paths` on the copy's packages."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "build/path"), "PYTHONDONTWRITEBYTECODE": "1"}
    quick = "not slow and not gpu and not browser"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", quick]
    done = subprocess.run([*command, *paths], cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode > FAILED:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
