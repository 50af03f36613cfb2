"""The command line, ``fastrnn --help``."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from .common import Threads, app, clear_errors, set_threads, typer

# Importing these modules registers their commands, in the order shown by --help.
from . import demo, language_model, tagger, units, report  # noqa: F401 isort:skip


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastrnn {version('fastrnn')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fast recurrent networks."""


def main() -> None:
    """The ``fastrnn`` command."""
    app()


@app.command()
def bench(
    all_: Annotated[bool, typer.Option("--all", help="Run every case (half an hour).")] = False,
    only: Annotated[str, typer.Option(help="Run cases whose group and name contain this.")] = "",
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds per package in a case.")] = 0.5,
    threads: Threads = None,
) -> None:
    """Time the kernels against the installed frameworks, in about two minutes."""
    set_threads(threads)
    with clear_errors():
        from fastrnn.bench import cases, report, timing

        chosen = [
            entry
            for entry in cases.CASES
            if only in f"{entry.group} {entry.name}" and (all_ or only or entry.quick)
        ]
        if not chosen:
            raise ValueError(f"--only {only!r} matches no case")
        peak, rows = timing.fma_peak(), []
        for entry in chosen:
            typer.echo(f"{entry.group}: {entry.name}", err=True)
            try:
                facts = timing.measure(entry.make(), seconds, peak)
            except AssertionError as error:
                raise ValueError(f"{entry.group}: {entry.name} fails its check: {error}") from error
            rows.append({"group": entry.group, "name": entry.name} | facts)
        heading = report.heading(rows, report.cpu_name(), time.strftime("%Y-%m-%d"))
        typer.echo(f"{heading}\n\n{report.table(rows)}")


@app.command()
def info(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="List the precompiled kernels.")
    ] = False,
) -> None:
    """Show the CPU code path, where each kernel comes from, the versions and the cache folder."""
    with clear_errors():
        from fastrnn import _native
        from fastrnn.kernels.cache import cache_dir
        from fastrnn.kernels.native import isa, library
        from fastrnn.runtime import threads

        paths = [path for path in (isa.ISA.base, isa.ISA.name) if path]
        names = sorted((name, path) for path in paths for name in _native.names(path))
        precompiled = len(names) if library.USE_PRECOMPILED else 0
        facts = {
            "fastrnn": version("fastrnn"),
            "cpu path": f"{isa.ISA.name} ({isa.width('float32')} float32 lanes)",
            "kernels": f"{precompiled} precompiled, others compiled when needed",
            "threads": f"{threads.get_num_threads()} of {os.cpu_count()} CPUs",
            "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
            **{name: _version(name) for name in ("numpy", "numba", "llvmlite", "scipy")},
            "cache": str(cache_dir()),
        }
        for name, fact in facts.items():
            typer.echo(f"{name:<9} {fact}")
        for name, path in names if kernels else ():
            where = "precompiled" if library.USE_PRECOMPILED else "compiled when needed"
            typer.echo(f"  {name}: {path}, {where}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
