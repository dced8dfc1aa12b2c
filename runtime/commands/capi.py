"""`megrez capi`: where the C API is, for compilers and build systems."""

from pathlib import Path

import click

from megrez.runtime.errors import MegrezError

FOLDER = Path(__file__).parent.parent / "capi"
LIBRARY = FOLDER / "libmegrez.so"


@click.command("capi")
@click.option("--cflags", is_flag=True, help="Flags that compile a program.")
@click.option("--libs", is_flag=True, help="Flags that link it, with the library's folder as its run path.")
@click.option("--library", is_flag=True, help="The path of libmegrez.so, for programs that load it with dlopen.")
@click.option("--pkgconfig", is_flag=True, help="The folder of megrez.pc, for PKG_CONFIG_PATH.")
@click.option("--cmake", is_flag=True, help="The folder of megrez-config.cmake, for megrez_DIR.")
def capi_command(cflags: bool, libs: bool, library: bool, pkgconfig: bool, cmake: bool) -> None:
    """Print what is asked for, on one line; without options all of it.

    cc program.c $(megrez capi --cflags --libs)
    """
    if (libs or library) and not LIBRARY.exists():
        raise MegrezError(
            f"{LIBRARY} was not compiled: install a C compiler, then run  pip install --force-reinstall megrez-compile"
        )
    lines = {
        "--cflags": (cflags, f"-I{FOLDER / 'include'}"),
        "--libs": (libs, f"-L{FOLDER} -lmegrez -Wl,-rpath,{FOLDER}"),
        "--library": (library, str(LIBRARY)),
        "--pkgconfig": (pkgconfig, str(FOLDER / "pkgconfig")),
        "--cmake": (cmake, str(FOLDER / "cmake")),
    }
    asked = [line for is_asked, line in lines.values() if is_asked]
    if asked:
        click.echo(" ".join(asked))
        return
    for option, (_, line) in lines.items():
        missing = option in ("--libs", "--library") and not LIBRARY.exists()
        click.echo(f"{option:<12} {'not compiled' if missing else line}")
