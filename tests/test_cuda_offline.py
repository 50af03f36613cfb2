"""Every CUDA kernel is compiled to machine code, which takes the extra but no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("numba_cuda", "cuda", "nvidia"))),
    reason="the extra [cuda] is not installed",
)


@pytest.fixture(scope="module")
def compiled():
    script = Path(__file__).with_name("cuda_offline.py")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_extra
def test_all_kernels_compile_and_keep_to_their_registers(compiled):
    assert {row["architecture"] for row in compiled} == {"sm_80", "sm_90"}
    for row in compiled:
        assert row["cubin"] > 0
        assert row["spilled"] == row["stack"] == 0, row
        # All threads of a block must find room in a multiprocessor's 65,536 registers.
        assert row["registers"] * row["threads"] <= 65536, row


@needs_extra
def test_float32_kernels_never_use_float64(compiled):
    """A Python float among the constants would make them."""
    of_each = {d: [row["float64"] for row in compiled if d in row["kernel"]] for d in
               ("float32", "float64")}  # fmt: skip
    assert not any(of_each["float32"]) and any(of_each["float64"])


@needs_extra
def test_the_time_loops_wait_for_all_blocks(compiled):
    for row in compiled:
        assert row["waits for the grid"] == row["kernel"].startswith(("forward", "backward"))
