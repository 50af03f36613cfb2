"""The cache of kernels compiled at run time saves time and never costs anything else."""

import os
import subprocess
import sys

import pytest

from helpers import python

pytest.importorskip("numba")

RUN = """
import sys
import warnings
warnings.simplefilter("error")
import numpy as np
from fastrnn.kernels.cpu import optim
print(optim.norm(np.full(4, 2.0, np.float32)), "numba" in sys.modules)
"""


def run(folder, cwd=None, *, unusable=False):
    """Whether a kernel had to be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env=os.environ | {"FASTRNN_CACHE_DIR": str(folder), "FASTRNN_JIT": "1"},
        capture_output=True, text=True, cwd=cwd or folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    norm, compiled = done.stdout.split()
    assert float(norm) == 4.0
    assert done.stderr.count("compiling kernels") == (compiled == "True")
    assert done.stderr.count("FASTRNN_CACHE_DIR names another folder") == unusable
    return compiled == "True"


BESIDE = """
import numba
import numpy as np
from fastrnn.kernels.cpu import optim

@numba.njit
def of_user(a):
    return min(a.sum(), 5.0), np.sort(a)[0]

a = np.arange(4.0)
assert of_user(a.astype("f")) == (5.0, 0.0)
optim.norm(np.full(4, 2.0, np.float32))
assert of_user(a) == (5.0, 0.0) and of_user(a.astype("f")) == (5.0, 0.0)
"""


def test_numba_works_as_before_beside_kernels(tmp_path):
    """What only kernels need gets no machine code from Numba, what others need does."""
    python(BESIDE, tmp_path, FASTRNN_JIT="1")


def test_second_process_compiles_nothing(tmp_path):
    folder = tmp_path / "cache"
    assert run(folder)
    assert not run(folder)


@pytest.mark.parametrize("damage", ["emptied", "cut short", "changed"])
def test_damaged_files_cost_a_compilation(tmp_path, damage):
    folder = tmp_path / "cache"
    run(folder)
    damaged = [p for p in folder.rglob("*") if p.is_file()]
    assert damaged
    for path in damaged:
        data = bytearray(path.read_bytes())
        if damage == "changed":
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: {"emptied": 0, "cut short": len(data) // 2}.get(damage)])
    assert run(folder)
    assert not run(folder)


def test_no_place_to_write(tmp_path):
    file = tmp_path / "a file"
    file.write_text("")
    assert run(file / "below", cwd=tmp_path, unusable=True)


def compile_and_read(script, folder):
    """Run a script twice, so that the second one reads what the first one compiled."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"FASTRNN_CACHE_DIR": str(folder), "FASTRNN_JIT": "1"},
            capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


# Numba numbers what a process compiles; here every number is the same, as two numbers may be
# when one kernel was read from the disk and another was not.
ONE_NAME = """
import itertools
import numpy as np
from numba.core.bytecode import FunctionIdentity
from fastrnn.layers import GRU, LSTM

FunctionIdentity._unique_ids = itertools.repeat(1)
x = np.random.default_rng(0).standard_normal((5, 7, 3))
for cell, more in (LSTM, {}), (GRU, {}), (GRU, {"activations": ("hard_sigmoid", "tanh")}):
    ours = cell(3, 20, seed=0, **more)
    oracle = cell(3, 20, dtype="float64", backend="reference", **more)
    oracle.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, oracle):
        y, _, tape = layer.forward(x)
        dx, _, grads = layer.backward(tape, y)
        results.append(dict(y=y, dx=dx, **grads))
    for name, wanted in results[1].items():
        worst = np.abs(results[0][name] - wanted).max() / np.abs(wanted).max()
        assert worst < 2e-5, (ours, name, worst)
"""


@pytest.mark.slow
def test_no_two_kernels_share_a_name(tmp_path):
    compile_and_read(ONE_NAME, tmp_path)


# All gaps in the address space are filled but for one of a page: code can only be placed 4 GB
# below it, and its constants would fit into it.
FULL = """
import ctypes
import numpy as np
import fastrnn
import fastrnn.kernels.native.source.compiler

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]

def reserved(size):
    return libc.mmap(None, size, 0, 0x4022, -1, 0)  # private, anonymous, without memory

first = reserved(3 * 4096)
end = reserved(4 << 30)
while reserved(2 * 4096) > end:
    pass
libc.munmap(ctypes.c_void_p(first + 4096), ctypes.c_size_t(4096))
print(fastrnn.LSTM(30, 40, seed=0)(np.ones((2, 1, 30)))[0].shape)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mmap of Linux")
def test_code_and_constants_are_loaded_side_by_side(tmp_path):
    compile_and_read(FULL, tmp_path)
