"""The thread pool of the kernels, and how work is divided among its threads.

Kernels are serial and run without the GIL. Each thread takes the next task of a call when it is
free, and the caller sleeps on a lock until all tasks are done. Nothing spins, except threads that
share one time loop (see kernels/cpu/barrier.py), so a busy neighbour on the other core costs its
share and no more.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Task = tuple  # (function, *arguments)

# The least work that is worth a thread, in multiply-adds: about 100 us, twice the time to wake it.
MIN_WORK = 1 << 22
# The cost of moving one number, in multiply-adds.
MOVE_COST = 32


def default_threads() -> int:
    """The number of CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _from_environment() -> int | None:
    text = os.environ.get("FASTRNN_NUM_THREADS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"FASTRNN_NUM_THREADS must be an integer of at least 1, got {text!r}")
    return int(text)


_threads = _from_environment() or default_threads()
_inboxes: list[queue.SimpleQueue] = []
_growing = threading.Lock()


def set_num_threads(n: int) -> None:
    """Set the number of threads that the kernels use.

    Results are the same to the last bit for any number.

    Raises
    ------
    TypeError, ValueError
        n is not an integer, or is below 1.
    """
    global _threads
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"n must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _threads = int(n)


def get_num_threads() -> int:
    """The number of threads that the kernels use.

    The default is the environment variable ``FASTRNN_NUM_THREADS``, else the number of CPUs that
    this process may run on.
    """
    return _threads


def _reset() -> None:
    """After a fork: the child has none of its parent's threads."""
    global _inboxes, _growing
    _inboxes, _growing = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


class _Message:
    """One worker's part in a call: the tasks that it takes from, and the lock it releases at the
    end."""

    __slots__ = ("abandon", "done", "failure", "finished", "tasks")

    def __init__(self, tasks: Iterator[Task], abandon: Callable[[], None]):
        self.tasks, self.abandon, self.done, self.failure = tasks, abandon, False, None
        self.finished = threading.Lock()
        self.finished.acquire()


def _run_all(tasks: Iterable[Task]) -> None:
    for function, *arguments in tasks:
        function(*arguments)


def _work(inbox: queue.SimpleQueue) -> None:
    while True:
        message = inbox.get()
        try:
            _run_all(message.tasks)
        except BaseException as error:
            message.failure = error
            message.abandon()
        message.tasks, message.done = iter(()), True
        message.finished.release()
        del message  # or it would live until the next call


def _workers(n: int) -> list[queue.SimpleQueue]:
    with _growing:
        while len(_inboxes) < n:
            inbox: queue.SimpleQueue = queue.SimpleQueue()
            threading.Thread(
                target=_work, args=(inbox,), name=f"fastrnn-{len(_inboxes)}", daemon=True
            ).start()
            _inboxes.append(inbox)
        return _inboxes[:n]


def run(
    tasks: Sequence[Task], threads: int | None = None, abandon: Callable[[], None] = lambda: None
) -> None:
    """Run the tasks and wait for all of them; each thread takes the next one when it is free.

    Tasks that wait for each other must be neighbours in the list, and no more of them than there
    are threads. ``abandon`` is called if one of them may never run.
    """
    threads = min(threads or _threads, len(tasks))
    if threads <= 1:
        return _run_all(tasks)
    failure: BaseException | None = None
    messages: list[_Message] = []
    posted: list[None] = []
    remaining = iter(tasks)  # over a list: taking the next item is one operation, so thread-safe
    try:
        inboxes = _workers(threads - 1)
        messages = [_Message(remaining, abandon) for _ in inboxes]
        # One caller at a time, so that two callers post to the same workers in the same order.
        with _growing:
            # In one operation, so that after any interrupt we know which workers have a message.
            posted.extend(map(queue.SimpleQueue.put, inboxes, messages))
        _run_all(remaining)
    except BaseException:
        abandon()
        raise
    finally:
        # Whatever happens here, no worker may still be writing when we return.
        for message in messages[: len(posted)]:
            while not message.done:
                try:
                    message.finished.acquire()
                except BaseException as error:  # Ctrl-C, or what a signal's handler raises
                    failure = error
                    abandon()
            failure = failure or message.failure
    if failure:
        raise failure


class Job(NamedTuple):
    """``function(*arguments, first, last)`` over ``range(items)``, to be divided among threads."""

    function: Callable
    arguments: tuple
    items: int
    cost: float  # of all items together, in multiply-adds


def threads_for(cost: float) -> int:
    """How many threads a call of this cost (in multiply-adds) should use."""
    return max(1, min(_threads, int(cost) // MIN_WORK))


def parallel_for(*jobs: Job) -> None:
    """Run the jobs together, in pieces: a thread that starts late or runs slowly does fewer."""
    threads = threads_for(sum(job.cost for job in jobs))
    tasks = []
    for job in jobs:
        pieces = 1
        if threads > 1:
            pieces = max(threads, min(4 * threads, int(job.cost) // MIN_WORK))
        tasks += [(job.function, *job.arguments, a, b) for a, b in split(job.items, pieces)]
    run(tasks, threads)


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
