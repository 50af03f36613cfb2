"""Every instruction-set path that this CPU can run, each in a process of its own."""

import os
import subprocess
import sys

import pytest

from fastrnn.kernels.cpu import simd

CHECK = """
import numpy as np
from fastrnn.layers import GRU, LSTM
from fastrnn.cells import CELLS
from fastrnn.kernels.cpu import fused, simd

assert simd.ISA.name == {path!r}, simd.ISA
rng = np.random.default_rng(0)
lengths = [7, 0, 3, 7, 1, 5, 2, 6, 7, 4, 1, 3, 2]
for cell, units, dtype, tolerance in (
    (LSTM, 16, "float32", 2e-5), (LSTM, 21, "float32", 2e-5), (LSTM, 21, "float64", 1e-11),
    (GRU, 21, "float32", 2e-5),
):
    ours = cell(9, units, 2, bidirectional=True, dtype=dtype, seed=0)
    oracle = cell(9, units, 2, bidirectional=True, dtype="float64", backend="reference")
    oracle.load_state_dict(ours.state_dict())
    x, dy = rng.standard_normal((7, 13, 9)), rng.standard_normal((7, 13, 2 * units))
    for batch in (13, 1):
        results = []
        for layer in (ours, oracle):
            y, _, tape = layer.forward(x[:, :batch], lengths=lengths[:batch])
            dx, _, grads = layer.backward(tape, dy[:, :batch])
            results.append(dict(y=y, dx=dx, **grads))
        for name, wanted in results[1].items():
            worst = np.abs(results[0][name] - wanted).max() / np.abs(wanted).max()
            assert worst < tolerance, (cell, dtype, units, batch, name, worst)
code = "".join(fused.loops(CELLS["lstm"], False).forward.dispatcher.inspect_asm().values())
print("registers:", *(r for r in ("zmm", "ymm", "xmm") if r in code))
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", list(simd.ISAS))
def test_path(path, tmp_path):
    isa = simd.ISAS[path]
    has = simd.llvm.get_host_cpu_features()
    if not all(has.get(feature) for feature in isa.needs):
        pytest.skip(f"this CPU has no {path}")
    environment = os.environ | {"FASTRNN_ISA": path, "FASTRNN_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(path=path)],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "avx2" in has:  # x86-64
        registers = done.stdout.split()[1:]
        assert ("zmm" in registers) == (path == "avx512")
        assert ("ymm" in registers) == (path != "generic")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import fastrnn; fastrnn.LSTM(2, 2)"],
        env=os.environ | {"FASTRNN_ISA": "mmx"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "FASTRNN_ISA is 'mmx'; this CPU can run" in done.stderr
