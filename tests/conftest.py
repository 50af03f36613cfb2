"""Fixtures."""

import numpy as np
import pytest
from hypothesis import settings

import fastrnn

# The same examples in every run: one that fails, fails for everybody.
settings.register_profile("fastrnn", derandomize=True)
settings.load_profile("fastrnn")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _threads():
    """Every test starts with two threads, whatever the one before did."""
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(2)
    yield
    fastrnn.set_num_threads(before)
