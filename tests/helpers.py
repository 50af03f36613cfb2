"""What several test files share: tolerances, the gradient check, what is installed."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")

CORPORA = Path(__file__).parents[2] / "shared" / "data"

# Largest difference from the float64 judge, relative to the judge's largest number (or to 1): by
# dtype, and by the precision of products in loops on tensor cores.
TOLERANCE = {
    "float32": 2e-5, "float64": 1e-11,
    "tensor cores, float32": 2e-5, "tensor cores, tf32": 2e-3, "tensor cores, bf16": 2e-2,
}  # fmt: skip


@functools.cache
def mpiexec() -> tuple[str, ...]:
    """The command that starts processes, which a wheel of MPI installs beside Python; empty if it
    or mpi4py is not there."""
    if importlib.util.find_spec("mpi4py") is None:
        return ()
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        return ()
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    more = []
    if "Open MPI" in version or "OpenRTE" in version:
        more = ["--oversubscribe", *["--allow-run-as-root"] * (os.getuid() == 0)]
    return (found, *more)


def difference(got, wanted, least=0.0) -> float:
    """Largest absolute difference over the largest wanted number, or ``least`` if that is more.

    ``least`` is for sums of terms of about that size: a single number in which they cancel is
    only as exact as they are.
    """
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"shape {got.shape} instead of {wanted.shape}"
    if wanted.size == 0:
        return 0.0
    scale = max(np.abs(wanted).max(), least)
    return float(np.abs(got - wanted).max() / (scale if scale > 0 else 1.0))


def check_close(got, wanted, dtype, what="", least=0.0, condition=1.0):
    """``condition`` is how much the computation amplifies rounding."""
    worst = difference(got, wanted, least)
    assert worst <= condition * TOLERANCE[np.dtype(dtype).name], f"{what}: {worst:.1e}"


def check_gradient(function, inputs, gradients, *, seed=0, eps=1e-6, tolerance=1e-7):
    """Compare ``sum(v * (f(x + eps u) - f(x - eps u)) / 2 eps)`` with the given gradients.

    ``function`` maps the arrays to a float (already contracted with v); float64.
    """
    rng = np.random.default_rng(seed)
    for number, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        u = rng.standard_normal(x.shape)
        moved = list(inputs)
        moved[number] = x + eps * u
        high = function(*moved)
        moved[number] = x - eps * u
        numeric = (high - function(*moved)) / (2 * eps)
        exact = float((gradient * u).sum())
        scale, rounding = max(abs(numeric), abs(exact), 1e-3), np.spacing(abs(high)) / eps
        assert abs(numeric - exact) <= tolerance * scale + rounding, (number, numeric, exact)


def python(code, folder, **environment) -> str:
    """What a program prints, in a process of its own; the cache of kernels is the folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env=os.environ | {"FASTRNN_CACHE_DIR": str(folder), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def fastrnn(*arguments, code=0, **more):
    """What the command line prints, in a process of its own; what it complains of if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn.cli", *map(str, arguments)], cwd=os.sep,
        capture_output=True, text=True, encoding="utf-8", **more,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def from_threads(call, count=4) -> list:
    """What ``call()`` returns in each of some threads that run at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(count)]]
