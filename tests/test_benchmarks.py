"""The scripts of benchmarks/ that no other test runs still fit the package."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.parameters import Parameters

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["embedding", "restarted", "rootless", "sgd", "rate-0.01"])
def test_the_optimizers_of_the_convergence_runs_take_a_step(monkeypatch, name):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    from convergence import RUNS

    parameters = Parameters({"w": np.ones(3)}, "float32")
    optimizer = RUNS[name][2]()
    for _ in range(2):
        optimizer.step(parameters, np.full(3, 0.5, "f"))
    assert (parameters["w"] < 1).all()
