"""How pytest-benchmark runs a case: it records our times; the peers' go into extra_info."""

import pytest

from fastrnn.bench import timing

SECONDS = 2.0  # per package and case


@pytest.fixture(scope="session")
def peak():
    return timing.fma_peak()


@pytest.fixture
def compare(benchmark, peak):
    """Check and time a case, ours and its peers in turn."""

    def run(case: timing.Case):
        turns = timing.Turns(case, SECONDS)
        rounds = turns.rounds if benchmark.enabled else 1
        benchmark.pedantic(case.ours, setup=turns.before_ours, rounds=rounds, warmup_rounds=1)
        benchmark.extra_info.update(turns.done(peak))

    return run
