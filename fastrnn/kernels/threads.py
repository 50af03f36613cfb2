"""One small thread pool, and the sharing out of work. Nothing else starts a thread.

Kernels are serial and run without the GIL. Each thread takes the next piece of a call's work
when it is free, and the caller sleeps on a lock until all is done, so nothing spins (but for
threads that share one time loop, see cpu/barrier.py): a busy neighbour on the other core costs
its share and no more.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Task = tuple  # (function, *arguments)

# Multiply-adds that a thread should have to do: about 100 us, twice what waking it costs.
LEAST = 1 << 22
# What a number that is only moved costs, in multiply-adds.
MOVE = 32


def default_threads() -> int:
    """The CPUs that this process may run on."""
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
    """Set how many threads the kernels use. Results do not depend on it, to the last bit."""
    global _threads
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"n must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _threads = int(n)


def get_num_threads() -> int:
    """How many threads the kernels use; at first the CPUs this process may run on,
    or the environment variable ``FASTRNN_NUM_THREADS``."""
    return _threads


def _forget() -> None:
    """After a fork the child has none of its parent's threads."""
    global _inboxes, _growing
    _inboxes, _growing = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Share:
    """What a worker takes its tasks from, and how it says that there are no more."""

    __slots__ = ("done", "failure", "give_up", "tasks", "turn")

    def __init__(self, tasks: Iterator[Task], give_up: Callable[[], None]):
        self.tasks, self.give_up, self.done, self.failure = tasks, give_up, False, None
        self.turn = threading.Lock()
        self.turn.acquire()


def _run_all(tasks: Iterable[Task]) -> None:
    for function, *arguments in tasks:
        function(*arguments)


def _work(inbox: queue.SimpleQueue) -> None:
    while True:
        share = inbox.get()
        try:
            _run_all(share.tasks)
        except BaseException as error:
            share.failure = error
            share.give_up()
        share.tasks, share.done = iter(()), True
        share.turn.release()
        del share  # or it would live until the next call


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
    tasks: Sequence[Task], threads: int | None = None, give_up: Callable[[], None] = lambda: None
) -> None:
    """Run the tasks and wait for all of them; each thread takes the next one when it is free.

    Tasks that wait for each other must follow one another in the list, no more of them than
    there are threads; ``give_up`` is called if one of them may never run.
    """
    threads = min(threads or _threads, len(tasks))
    if threads <= 1:
        return _run_all(tasks)
    failure: BaseException | None = None
    shares: list[_Share] = []
    posted: list[None] = []
    left = iter(tasks)  # of a list: taking the next is one operation, so safe between threads
    try:
        inboxes = _workers(threads - 1)
        shares = [_Share(left, give_up) for _ in inboxes]
        # One caller at a time, so that two who need the same workers find them in one order.
        with _growing:
            # In one operation, so that whatever interrupts us we know who was asked.
            posted.extend(map(queue.SimpleQueue.put, inboxes, shares))
        _run_all(left)
    except BaseException:
        give_up()
        raise
    finally:
        # Whatever happens here, nobody may still be writing when we return.
        for share in shares[: len(posted)]:
            while not share.done:
                try:
                    share.turn.acquire()
                except BaseException as error:  # Ctrl-C, or what a signal's handler raises
                    failure = error
                    give_up()
            failure = failure or share.failure
    if failure:
        raise failure


class Job(NamedTuple):
    """``function(*arguments, first, last)`` over ``range(items)``, to be cut into shares."""

    function: Callable
    arguments: tuple
    items: int
    cost: float  # of all of it, in multiply-adds


def worth(cost: float) -> int:
    """How many threads a piece of work is worth."""
    return max(1, min(_threads, int(cost) // LEAST))


def spread(*jobs: Job) -> None:
    """Do the jobs at once, in pieces: a thread that starts late or runs slowly does fewer."""
    shares = worth(sum(job.cost for job in jobs))
    tasks = []
    for job in jobs:
        pieces = 1 if shares == 1 else max(shares, min(4 * shares, int(job.cost) // LEAST))
        tasks += [(job.function, *job.arguments, a, b) for a, b in even(job.items, pieces)]
    run(tasks, shares)


def even(items: int, shares: int) -> list[tuple[int, int]]:
    """Cut ``range(items)`` into ``shares`` runs of about equal length."""
    return list(pairwise(items * i // shares for i in range(shares + 1)))


def balanced(weights: Sequence[int] | np.ndarray, shares: int) -> list[tuple[int, int]]:
    """Cut ``range(len(weights))`` into at most ``shares`` runs of about equal weight."""
    total = np.cumsum(weights, dtype=np.int64)
    if len(total) == 0:
        return []
    goals = total[-1] * np.arange(1, shares) / shares
    inner = np.searchsorted(total, goals - 0.5) + 1 if len(goals) else []
    cuts = sorted({0, *(int(min(c, len(total))) for c in inner), len(total)})
    return list(pairwise(cuts))
