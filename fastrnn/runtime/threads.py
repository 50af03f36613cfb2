"""How work is divided among the threads of the team (src_native/team.h), and how many there are.

Kernels are serial over a range and run without the GIL. A *program* is a list of phases, a phase a
list of tasks; each thread takes the next task of a phase when it is free, and the next phase starts
when all tasks are done. Results do not depend on the number of threads.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn._native import Kernel
from fastrnn._native import run as run_program

# The least work that is worth a piece of its own, in multiply-adds: a few microseconds.
MIN_WORK = 1 << 19
# The cost of moving one number, in multiply-adds.
MOVE_COST = 32


def cpus() -> frozenset[int]:
    """The CPUs that this process may run on."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return frozenset(range(os.cpu_count() or 1))


def _from_environment() -> int | None:
    text = os.environ.get("FASTRNN_NUM_THREADS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"FASTRNN_NUM_THREADS must be an integer of at least 1, got {text!r}")
    return int(text)


_threads = _from_environment() or len(cpus())


def set_num_threads(n: int) -> None:
    """Set the number of threads that the kernels use.

    Results are the same to the last bit for any number.

    Raises
    ------
    TypeError, ValueError
        n is not an integer, or is below 1.
    """
    global _threads
    _threads = checks.integer("n", n)


def get_num_threads() -> int:
    """The number of threads that the kernels use.

    The default is the environment variable ``FASTRNN_NUM_THREADS``, else the number of CPUs that
    this process may run on.
    """
    return _threads


class Task(NamedTuple):
    """``kernel(*arguments, first, last)``, by one thread."""

    kernel: Kernel
    arguments: tuple
    first: int = 0
    last: int = 0


class Job(NamedTuple):
    """``kernel(*arguments, first, last)`` over ``range(items)``, to be divided by its cost."""

    kernel: Kernel
    arguments: tuple
    items: int
    cost: float  # of all items together, in multiply-adds
    group: int = 1  # of items, of which a piece has several or, on many threads, an equal part


def threads_for(cost: float) -> int:
    """How many threads a call of this cost (in multiply-adds) should use."""
    return max(1, min(_threads, int(cost) // MIN_WORK))


Phase = list  # of tasks and jobs


def run(phases: list[Phase], threads: int, *, together: bool = False) -> None:
    """Run the phases one after the other, on that many threads at most.

    ``together``: tasks of a phase wait for each other. They must be neighbours in the list, and no
    more of them than ``threads``.
    """
    run_program(phases, threads, MIN_WORK, together)


def parallel_for(*jobs: Job) -> None:
    """Run the jobs as one phase."""
    run([list(jobs)], threads_for(sum([job.cost for job in jobs])))


def split(items: int, parts: int) -> list[tuple[int, int]]:
    """Divide ``range(items)`` into ``parts`` runs of about equal length."""
    return list(pairwise(items * i // parts for i in range(parts + 1)))


def split_by_weight(weights: Sequence[int] | np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Divide ``range(len(weights))`` into at most ``parts`` runs of about equal total weight."""
    total = np.cumsum(weights, dtype=np.int64)
    if len(total) == 0:
        return []
    goals = total[-1] * np.arange(1, parts) / parts
    inner = np.searchsorted(total, goals - 0.5) + 1 if len(goals) else []
    cuts = sorted({0, *(int(min(c, len(total))) for c in inner), len(total)})
    return list(pairwise(cuts))
