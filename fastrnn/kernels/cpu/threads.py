"""One small thread pool, and the sharing out of work. Nothing else starts a thread.

Kernels are serial and run without the GIL. A call hands each worker one piece and waits on
a lock, so nothing spins: a busy neighbour on the other core costs its share and no more.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

Task = tuple  # (function, *arguments)


def _default_threads() -> int:
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


_threads = _from_environment() or _default_threads()
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


def _run_all(tasks: Sequence[Task]) -> None:
    for function, *arguments in tasks:
        function(*arguments)


def _work(inbox: queue.SimpleQueue) -> None:
    while True:
        tasks, done, failures = inbox.get()
        try:
            _run_all(tasks)
        except BaseException as error:
            failures.append(error)
        finally:
            del tasks  # or their arrays would live until the next call
            done.release()


def _workers(n: int) -> list[queue.SimpleQueue]:
    with _growing:
        while len(_inboxes) < n:
            inbox: queue.SimpleQueue = queue.SimpleQueue()
            threading.Thread(
                target=_work, args=(inbox,), name=f"fastrnn-{len(_inboxes)}", daemon=True
            ).start()
            _inboxes.append(inbox)
        return _inboxes[:n]


def run(tasks: Sequence[Task]) -> None:
    """Run the tasks, dealt out to the threads in turn, and wait for all of them."""
    threads = min(_threads, len(tasks))
    if threads <= 1:
        return _run_all(tasks)
    done = threading.Semaphore(0)
    failures: list[BaseException] = []
    interrupted, waiting = None, 0
    try:
        for i, inbox in enumerate(_workers(threads - 1), start=1):
            inbox.put((tasks[i::threads], done, failures))
            waiting += 1
        _run_all(tasks[::threads])
    finally:
        # Whatever happens here, nobody may still be writing when we return.
        while waiting:
            try:
                done.acquire()
                waiting -= 1
            except BaseException as error:  # Ctrl-C, or what another signal's handler raises
                interrupted = error
    if interrupted or failures:
        raise interrupted or failures[0]


def spread(function: Callable, arguments: tuple, count: int, least: int = 1) -> None:
    """``function(*arguments, first, last)`` over equal shares of ``range(count)``.

    ``least``: no share is smaller than this, so that small work stays in one thread.
    """
    shares = max(1, min(_threads, count // max(least, 1)))
    bounds = [count * i // shares for i in range(shares + 1)]
    run([(function, *arguments, a, b) for a, b in pairwise(bounds)])


def balanced(weights: Iterable[int], shares: int) -> list[tuple[int, int]]:
    """Cut ``range(len(weights))`` into at most ``shares`` runs of about equal weight."""
    total = np.cumsum(np.fromiter(weights, dtype=np.int64))
    if len(total) == 0:
        return []
    goals = total[-1] * np.arange(1, shares) / shares
    inner = np.searchsorted(total, goals - 0.5) + 1 if len(goals) else []
    cuts = sorted({0, *(int(min(c, len(total))) for c in inner), len(total)})
    return list(pairwise(cuts))
