"""The ABI of megrez.h as lines: functions, values, and each struct's fields with their offsets; not a test.

python -m tests.runtime.capi.header > tests/runtime/capi/abi.txt  writes the list that is checked in.
"""

import re
import subprocess
import tempfile
from pathlib import Path

INCLUDE = Path(__file__).parents[3] / "runtime" / "capi" / "include"


def functions() -> list[str]:
    return [" ".join(one.split()) for one in re.findall(r"^MEGREZ_API ([^;]*);", _code(), re.MULTILINE | re.DOTALL)]


def callbacks() -> list[str]:
    return [" ".join(one.split()) for one in re.findall(r"^typedef (\w+ \(\*[^;]*);", _code(), re.MULTILINE)]


def values() -> list[str]:
    defined = re.findall(r"#define (MEGREZ_ABI_VERSION) (\d+)", _code())
    return [f"{name} = {value}" for name, value in [*defined, *re.findall(r"(MEGREZ_\w+) = (-?\d+)", _code())]]


def layouts() -> list[str]:
    """As the compiler lays them out."""
    structs = re.findall(r"^typedef struct (\w+) \{(.*?)\} \w+;", _code(), re.MULTILINE | re.DOTALL)
    printed = []
    for name, body in structs:
        printed.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field in re.findall(r"(\w+);", body):
            size = f"sizeof((({name} *)0)->{field})"
            printed.append(f'printf("{name}.{field} at %zu of %zu\\n", offsetof({name}, {field}), {size});')
    program = f"#include <megrez.h>\n#include <stdio.h>\nint main(void) {{ {' '.join(printed)} return 0; }}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layout"
        compile_c = ["cc", "-x", "c", "-std=c99", f"-I{INCLUDE}", "-", "-o", str(path)]
        subprocess.run(compile_c, input=program, text=True, check=True)
        return subprocess.run([str(path)], capture_output=True, text=True, check=True).stdout.splitlines()


def _code() -> str:
    text = (INCLUDE / "megrez.h").read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def abi() -> str:
    return "\n".join([*functions(), "", *callbacks(), "", *values(), "", *layouts(), ""])


if __name__ == "__main__":
    print(abi(), end="")
