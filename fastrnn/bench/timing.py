"""Times ours and its peers in turn (A B A B ...), after checking each case."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastrnn.kernels.native.isa import width
from fastrnn.kernels.native.library import find
from fastrnn.runtime.threads import Task, get_num_threads, run, set_num_threads

SETTLE = 0.02  # seconds that a side runs before its turn is timed


@dataclass
class Case:
    """``ours`` and ``peers`` take no arguments and do the same work; ``check`` raises
    AssertionError if ours is wrong. Creating a case is not timed."""

    ours: Callable[[], object]
    check: Callable[[], None]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    flops: float = 0.0  # operations per call; a multiply-add counts as 2
    moved: float = 0.0  # bytes read and written by one call
    items: float = 0.0  # characters, rows or sentences per call
    calls: int = 1  # repetitions per call, for work that takes microseconds
    threads: int | None = None  # if not the current setting
    speed: float = 1.0  # multiply-adds per instruction, relative to float32


def _timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _settle(function) -> None:
    """Run a side until the other's idle threads sleep and its own data is in the cache."""
    end = time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        function()


def _set_threads(n: int) -> None:
    set_num_threads(n)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(n)


class Turns:
    """The rounds of one case: in each, the caller runs `before_ours` and then times ours."""

    def __init__(self, case: Case, seconds: float):
        self.case, self.peers = case, {name: list[float]() for name in case.peers}
        self.threads = get_num_threads()
        _set_threads(case.threads or self.threads)
        sides = [case.ours, *case.peers.values()]
        try:
            case.check()
            for side in sides:
                side()
        except BaseException:
            _set_threads(self.threads)
            raise
        self.once = sum(map(_timed, sides)) / len(sides)
        self.rounds = max(5, min(100, int(seconds / max(self.once, SETTLE))))

    def before_ours(self) -> None:
        short = self.once < 5 * SETTLE
        for name, peer in self.case.peers.items():
            if short:
                _settle(peer)
            self.peers[name].append(_timed(peer))
        if short:
            _settle(self.case.ours)

    def done(self, peak: float) -> dict:
        """What the report needs besides our own times."""
        case = self.case
        facts = {
            "threads": get_num_threads(),
            "calls": case.calls,
            "peak_flops": peak * case.speed * get_num_threads() / self.threads,
            "flops": case.flops,
            "moved": case.moved,
            "items": case.items,
            "peers": {name: statistics.median(t) for name, t in self.peers.items()},
        }
        _set_threads(self.threads)
        return facts


def measure(case: Case, seconds: float, peak: float) -> dict:
    """What the report needs about a case, with our median in seconds as ``ours``."""
    turns, times = Turns(case, seconds), []
    for _ in range(turns.rounds):
        turns.before_ours()
        times.append(_timed(case.ours))
    return turns.done(peak) | {"ours": statistics.median(times)}


def fma_peak(seconds: float = 0.5) -> float:
    """Peak multiply-add rate of all threads now, in floating-point operations per second."""
    threads = get_num_threads()
    out = np.full((threads, 64), 0.5, np.float32)
    count, best = 1_000_000, 0.0
    multiply_adds = find("peak.multiply_adds", out.dtype)
    phase = [Task(multiply_adds, (row, count)) for row in out]
    run([phase], threads)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        out[:] = 0.5
        done = threads * count * 12 * width("float32") * 2
        best = max(best, done / _timed(lambda: run([phase], threads)))
    return best
