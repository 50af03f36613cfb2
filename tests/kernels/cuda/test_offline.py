"""Every CUDA kernel is compiled to machine code, which takes the extra but no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("numba_cuda", "cuda", "nvidia"))),
        reason="the extra [cuda] is not installed",
    ),
]


def output(script: str) -> str:
    """What a script prints that has the kernels compiled."""
    path = Path(__file__).with_name(script)
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled():
    return [json.loads(line) for line in output("offline.py").splitlines()]


def test_no_kernel_spills(compiled):
    assert {row["architecture"] for row in compiled} == {"sm_80", "sm_90"}
    for row in compiled:
        assert row["spilled"] == row["stack"] == row["local memory"] == 0, row
        # All threads of a block must find room in a multiprocessor's 65,536 registers.
        assert row["registers"] * row["threads"] <= 65536, row


def test_float32_kernels_never_use_float64(compiled):
    """A Python float among the constants would make them."""
    wide = {row["kernel"] for row in compiled if row["float64"]}
    assert wide and all("float64" in name for name in wide)


def test_clusters_hold_their_weights_and_use_tensor_cores(compiled):
    rows = [row for row in compiled if row["kernel"].startswith("cluster")]
    assert len(rows) == 6
    if not rows[0]["disassembled"]:
        pytest.skip("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    for row in rows:
        # Weights are in registers: as many mma's stand there as 128 words take, and what comes
        # out of shared memory in a loop.
        products = 3 if "float32" in row["kernel"] else 1
        assert row["registers"] > 128 and row["tensor cores"] >= 32, row
        assert row["tensor cores"] >= 32 * products - 32 * (products > 2), row
        # Nothing that lanes do together was copied behind a condition: one barrier before the
        # loop and one in it, and a shuffle for each gate that is sent in pairs.
        assert row["cluster barriers"] == 2, row
        sent = 0 if "tf32" in row["kernel"] else 4 if "backward" in row["kernel"] else 1
        assert row["shuffles"] == sent, row


def test_dry_run():
    """Everything the host does, but for running the kernels; all memory is given back."""
    printed = output("dry_run.py")
    assert "cooperative" in printed and "clusters of 2" in printed
    assert "0 blocks of memory left" in printed
