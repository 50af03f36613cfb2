"""Every CUDA kernel is compiled to machine code, which takes the extra but no GPU."""

import importlib.util
import json
import os
import shutil
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


def output(script: str, **environment: str) -> str:
    """What a script prints that has the kernels compiled."""
    path = Path(__file__).with_name(script)
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"} | environment
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled():
    return [json.loads(line) for line in output("offline.py").splitlines()]


@pytest.fixture(scope="module")
def assembled(compiled):
    """Those whose instructions are known."""
    if not compiled[0]["disassembled"]:
        pytest.skip("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    return compiled


def test_no_kernel_spills(compiled):
    assert {row["architecture"] for row in compiled} == {"sm_80", "sm_90", "sm_100", "sm_120"}
    for row in compiled:
        assert row["spilled"] == row["stack"] == 0, row
        # All threads of a block must find room in a multiprocessor's 65,536 registers.
        assert row["registers"] * row["threads"] <= 65536, row


def test_the_host_passes_what_the_kernel_takes(compiled):
    assert all(row["parameters agree"] for row in compiled)


def test_float32_kernels_never_use_float64(compiled):
    """A Python float among the constants would make them."""
    wide = {row["kernel"] for row in compiled if row["float64"]}
    assert wide and all("float64" in name for name in wide)


def test_what_a_step_waits_for(assembled):
    for row in assembled:
        assert row["local memory"] == 0, row
        if row["kernel"].startswith("cluster"):
            # Where both passes leave no register, an address is overwritten by the first product.
            full = row["kernel"].startswith(("cluster backward float32", "cluster backward tf32"))
            assert row["loads waited for"] <= full, row
        if row["kernel"].startswith(("cluster", "grid")):
            assert row["fences in a step"] <= FENCES, row


# On one line each: the most instructions that stand for a multiply-add in the hottest loop, so
# that no change makes a loop slower unnoticed. Tensor cores do 1,024 multiply-adds in one.
MOST_INSTRUCTIONS = {
    "product_kernel of float32": 5.1,
    "grid forward_loop lstm float32": 7.9,
    "grid backward_loop lstm float32": 18.6,
    "cluster forward bf16": 13,
    "cluster backward bf16": 17,
}
FENCES = 2  # at the barrier: what others are to see, and what they are to have seen


def test_instructions_of_a_multiply_add(assembled):
    for start, most in MOST_INSTRUCTIONS.items():
        rows = [row for row in assembled if row["kernel"].startswith(start)]
        assert rows
        for row in rows:
            assert row["instructions per multiply-add"] <= most, row


def test_clusters_hold_their_weights_and_use_tensor_cores(assembled):
    rows = [row for row in assembled if row["kernel"].startswith("cluster")]
    assert len(rows) == 18
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


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """What the host does, on a driver that has memory and runs nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed to make the driver")
    folder = tmp_path_factory.mktemp("driver")
    source, library = Path(__file__).with_name("fake_driver.c"), folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    printed = output("dry_run.py", LD_LIBRARY_PATH=str(folder))
    return [json.loads(line) for line in printed.splitlines()]


def test_the_host_without_a_gpu(dry_run):
    """Devices, streams, memory and errors are looked at by the script itself."""
    for row in dry_run:
        lstm, inference = row["layer"] == "LSTM", row["call"] == "inference"
        assert row["launches"] <= (2 + (not lstm) if inference else 8 if lstm else 10), row
        assert row["others"] <= 2 * (not lstm), row
