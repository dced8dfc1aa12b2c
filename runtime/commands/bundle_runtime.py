"""`megrez bundle-runtime`: a folder that runs bundles where there is no pip and no Python."""

from pathlib import Path

import click

_MIB = 1 << 20


@click.command("bundle-runtime")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Copy this cpu-* bundle to FOLDER/bundle.  [default: none]",
    metavar="BUNDLE",
)
@click.option("--serve", is_flag=True, help="With what megrez serve and guided output need: the extra [serve].")
def bundle_runtime_command(folder: Path, bundle: Path | None, serve: bool) -> None:
    """Write FOLDER, which runs cpu-* bundles wherever it is moved to, on Linux with this architecture and glibc.

    It has this Python with its standard library, megrez and the packages of [cpu], and libmegrez for C programs.
    FOLDER/bin/megrez run FOLDER/bundle "Hi"
    """
    from megrez.runtime.relocatable.write import write_runtime

    written = write_runtime(folder, bundle=bundle, serve=serve)
    for name, size in written.sizes.items():
        click.echo(f"{name:<24} {size / _MIB:7.1f} MiB")
    click.echo(f"{'in all':<24} {sum(written.sizes.values()) / _MIB:7.1f} MiB")
    click.echo(f"wrote {folder}: for Linux on {written.machine} with glibc {written.glibc} or later", err=True)
    if not written.capi:
        click.echo("note: without libmegrez, which needs a C compiler here and a Python with libpython", err=True)
