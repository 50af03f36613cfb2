"""What all commands share."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ImportError:
    from fastrnn.extras import needs

    sys.exit(needs("the command line needs typer", "cli"))

app = typer.Typer(help="Fast recurrent networks.", no_args_is_help=True)
train_app = typer.Typer(help="Train a model.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare data.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")

if TYPE_CHECKING:
    from fastrnn.distributed import Group
    from fastrnn.types import BackendName as Backend
    from fastrnn.types import Precision
else:
    Precision = Annotated[
        str, typer.Option(help="Of matrix products: float32, bf16, or int8 (only to use a model).")
    ]
    Backend = Annotated[str, typer.Option(help="cpu, cuda (an NVIDIA GPU) or reference (slow).")]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of threads; by default all CPUs.")]


Shards = Annotated[
    int | None,
    typer.Option(
        min=1, help="Parts of a batch, for mpiexec; by default as many as there are processes."
    ),
]


@contextlib.contextmanager
def clear_errors(group: "Group | None" = None) -> Iterator[None]:
    """Report errors in the user's input as one line instead of a traceback.

    Any error ends all processes of the ``group``: the others would wait for this one.
    """
    try:
        yield
    except (typer.Exit, GeneratorExit):
        raise
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        with _ending(group):
            typer.secho(f"fastrnn: {error}", err=True, fg="red")
        raise typer.Exit(1) from None
    except BaseException:
        if group is None or group.size == 1:
            raise
        with _ending(group):
            traceback.print_exc()


@contextlib.contextmanager
def _ending(group: "Group | None") -> Iterator[None]:
    """End all processes of a group after a message."""
    if group is None or group.size == 1:
        yield
        return
    if not group.lead:
        time.sleep(1)  # the lead tells of an error that all have
    yield
    sys.stderr.flush()
    time.sleep(0.3)  # the launcher closes the pipes at once: let it pass the message on
    group.comm.Abort(1)


# What the launchers of MPICH and Intel MPI, of Open MPI, and of Slurm set; PMIx sets no size.
_SIZES = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"


def _communicator() -> Any:
    """That of all processes which ``mpiexec`` started, else None."""
    sizes = [os.environ[name] for name in _SIZES if name in os.environ]
    if not sizes and "PMIX_RANK" in os.environ:
        sizes = [os.environ.get("SLURM_STEP_NUM_TASKS", "")]
    if sizes in ([], ["1"]):
        return None
    # NumPy's products only initialise weights; with threads, its processes take each other's CPUs.
    for name in "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS":
        os.environ.setdefault(name, "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError: there is no MPI library
        from fastrnn.extras import needs

        raise ImportError(needs(f"mpiexec needs mpi4py: {error}", "mpi")) from None
    return MPI.COMM_WORLD


@contextlib.contextmanager
def processes() -> Iterator["Group"]:
    """The processes of a command that ``mpiexec`` started; see `clear_errors`."""
    with clear_errors():
        comm = _communicator()  # before NumPy is imported
        from fastrnn.distributed.group import Group, share_cpus

        group = Group(comm=comm)
        share_cpus(comm)
    with clear_errors(group):
        yield group


def group_of(job: "Group", options: dict[str, Any], resume: bool) -> "Group":
    """The group of a training command; completes the option ``shards``."""
    from fastrnn.distributed import Group

    if options["shards"] is None:  # runs of older versions had one
        options["shards"] = 1 if resume else job.size
    return Group(options["shards"], job.comm)


def workers(group: "Group") -> str:
    """The processes and threads, for a message."""
    from fastrnn.runtime.threads import get_num_threads

    count = get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)}"
    return threads if group.size == 1 else f"{group.size} processes of {threads}"


def set_threads(threads: int | None) -> None:
    if threads is not None:
        from fastrnn.runtime.threads import set_num_threads

        set_num_threads(threads)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def numbers(option: str, text: str) -> list[int]:
    """The numbers in an option such as ``1,2``."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{option} must be numbers such as 1,2; got {text!r}") from None


def options_of(
    context: typer.Context, before: Path | None, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options of a training command; those not given are of the run ``before``, if any.

    ``known`` are the values of options that ``before`` may lack.
    """
    elsewhere = "out", "backend", "threads", "resume"
    options = {k: v for k, v in context.params.items() if k not in elsewhere}
    if before is not None:
        known = {**(known or {}), **_options_before(before)}
    known = known or {}
    for name in options.keys() & known.keys():
        if not is_given(context, name):
            options[name] = known[name]
    return options


def _options_before(out: Path) -> dict[str, Any]:
    from fastrnn.checkpoint import load_json

    path = out / "options.json"
    before = load_json(path)
    if not isinstance(before, dict):
        raise ValueError(f"{path} is damaged: it must hold an object, got {before!r:.60}")
    return before


def open_run(out: Path, resume: bool, options: dict[str, Any], free: tuple[str, ...] = ()) -> None:
    """Start a run in the folder, or check that the run to be resumed has the same options.

    Options named in ``free`` may differ when a run is resumed.
    """
    from fastrnn.checkpoint import only_one

    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        _open_run(out, resume, options, free)


def _open_run(out: Path, resume: bool, options: dict[str, Any], free: tuple[str, ...]) -> None:
    from fastrnn.checkpoint import save_json

    path, history = out / "options.json", out / "history.jsonl"
    if not resume:
        if history.exists() and history.stat().st_size:
            raise ValueError(f"{out} holds a run already: add --resume, or choose another --out")
        save_json(path, options)
        return
    before = _options_before(out)
    if "shards" in options:
        before.setdefault("shards", 1)
    # A run of an older version lacks the options that came later.
    changed = sorted(
        k for k in options.keys() & before if k not in free and options[k] != before[k]
    )
    if changed == ["checksum"]:
        raise ValueError(f"{out} cannot be resumed: the files hold other data than they did")
    changed = [k for k in changed if k != "checksum"]
    if changed:
        named = ", ".join(f"--{k.replace('_', '-')} was {before.get(k)!r}" for k in changed)
        raise ValueError(f"{out} cannot be resumed with other options: {named}")
    save_json(path, options)
