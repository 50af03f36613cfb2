"""Ours and its peers in turn: A B A B ..., every case checked before it is timed."""

import statistics
import time

import pytest

import cases

SECONDS = 2.0  # for each side of a case
SETTLE = 0.02  # seconds that a side runs before its turn is timed


def _timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _settle(function) -> None:
    """Run a side until the other's waiting threads are asleep and its own data is near."""
    end = time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        function()


@pytest.fixture(scope="session")
def peak():
    return cases.fma_peak()


@pytest.fixture
def compare(benchmark, peak):
    """Time a case; the peers' times and the rates go into the JSON as ``extra_info``."""

    def run(case: cases.Case):
        case.check()
        sides = {"fastrnn": case.ours, **case.peers}
        for side in sides.values():
            side()
        once = sum(_timed(side) for side in sides.values()) / len(sides)
        rounds = max(7, min(100, int(SECONDS / once))) if benchmark.enabled else 1
        times: dict[str, list[float]] = {name: [] for name in case.peers}

        def peers():
            for name, peer in case.peers.items():
                if once < 5 * SETTLE:
                    _settle(peer)
                times[name].append(_timed(peer))
            if once < 5 * SETTLE:
                _settle(case.ours)

        benchmark.pedantic(case.ours, setup=peers, rounds=rounds, warmup_rounds=1)
        benchmark.extra_info.update(
            threads=cases.THREADS,
            peak_flops=peak,
            flops=case.flops,
            moved=case.moved,
            items=case.items,
            peers={name: statistics.median(t) for name, t in times.items()},
        )

    return run
