"""Fixtures."""

import os

# CUDA kernels run as plain Python unless somebody asks for a GPU; Numba looks when it is imported.
os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

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
