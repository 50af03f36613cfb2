"""Every CUDA kernel is compiled to machine code, which takes the extra but no GPU."""

import importlib.util
import json
import os
import re
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
    """Those whose instructions are looked at."""
    rows = [row for row in compiled if row["looked at"]]
    if "instructions" not in rows[0]:
        pytest.skip("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    return rows


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
        if row["kernel"].startswith(("cluster", "group")):
            assert row["loads waited for"] == 0, row
        most = 0 if row["kernel"].startswith("cluster") else FENCES
        assert row["fences in a step"] <= most, row


# On one line each: the most instructions that stand for a multiply-add in the hottest loop, so
# that no change makes a loop slower unnoticed. Tensor cores do 1,024 multiply-adds in one.
MOST_INSTRUCTIONS = {
    "product_kernel of float32": 2.4,
    "grid forward_loop lstm float32": 3.3,
    "grid backward_loop lstm float32": 9.8,
    "cluster forward lstm bf16, 256": 10.6,
    "cluster backward lstm bf16, 256": 13.7,
    "cluster forward lstm bf16, 512": 8.8,
    "cluster backward lstm bf16, 512": 10.9,
    "cluster forward rnn bf16, 1024": 9.4,
    "cluster backward rnn bf16, 1024": 8.2,
    "group forward lstm bf16, 1024": 9.0,
    "group backward lstm bf16, 1024": 10.4,
}
FENCES = 2  # at the barrier: what others are to see, and what they are to have seen


def test_instructions_of_a_multiply_add(assembled):
    for start, most in MOST_INSTRUCTIONS.items():
        rows = [row for row in assembled if row["kernel"].startswith(start)]
        assert rows
        for row in rows:
            assert row["instructions per multiply-add"] <= most, row


def test_loops_hold_their_weights_and_use_tensor_cores(assembled):
    rows = [row for row in assembled if row["kernel"].startswith(("cluster", "group"))]
    assert len(rows) == 76
    for row in rows:
        # Weights are in registers, and all products of a step stand one after the other.
        words = int(re.search(r"of (\d+) words", row["kernel"])[1])
        products = words // 4 * (3 if "float32" in row["kernel"] else 2) // 2
        assert row["registers"] > 128 and row["tensor cores"] == products, row
        if row["kernel"].startswith("cluster"):
            # Nothing that lanes do together was copied behind a condition: one barrier before the
            # loop, and a shuffle for each gate or unit that is sent in pairs.
            assert row["cluster barriers"] == 1, row
            few = "forward" in row["kernel"] and " rnn " not in row["kernel"]
            assert row["shuffles"] == (0 if "tf32" in row["kernel"] else 1 if few else 4), row


CACHED = """
import sys
from types import SimpleNamespace
import numpy as np
from numba.cuda import dispatcher
from fastrnn.cells import CELLS
from fastrnn.kernels.cuda import fused, machine, moves
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(8, 0))
if sys.argv[1] == "again":
    machine.ptx_of = None  # nothing may be compiled
kernel = moves.gather_kernel(np.dtype("float32"))
name, code = machine.code_of(kernel, (9, 0))
assert name in code.decode("latin1") and machine.key(kernel, (8, 0)) != machine.key(kernel, (9, 0))
loops = [fused.forward_loop(CELLS[c], 64, np.dtype("float32")).kernel for c in ("lstm", "gru")]
print(name, *(machine.key(k, (9, 0)) for k in (kernel, *loops)))
"""


def test_machine_code_is_kept_for_other_processes(tmp_path):
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "FASTRNN_CACHE_DIR": str(tmp_path)}

    def run(*args):
        command = [sys.executable, "-c", CACHED, *args]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("first")
    assert run("again") == first and len(set(first.split())) == 4
    (file,) = tmp_path.glob("cuda/*.cubin")
    file.write_bytes(file.read_bytes()[:-1])  # damaged: compiled again
    assert run("first") == first


@pytest.fixture(scope="module")
def without_a_gpu(tmp_path_factory) -> dict[str, str]:
    """The environment with a driver that has memory and runs nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed to make the driver")
    folder = tmp_path_factory.mktemp("driver")
    source, library = Path(__file__).with_name("fake_driver.c"), folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "NUMBA_ENABLE_CUDASIM": "0"}


def test_the_host_without_a_gpu(without_a_gpu):
    """Devices, streams, memory and errors are looked at by the script itself."""
    for row in map(json.loads, output("dry_run.py", **without_a_gpu).splitlines()):
        lstm, inference = row["layer"] == "LSTM", row["call"] == "inference"
        assert row["launches"] <= (2 + (not lstm) if inference else 8 if lstm else 11), row
        assert row["others"] <= 2 * (not lstm), row
