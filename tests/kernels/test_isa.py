"""Every instruction-set path that this CPU can run, each in a process of its own."""

import pytest

from fastrnn.kernels.native import isa
from helpers import python

CHECK = """
import numpy as np
from fastrnn.layers import GRU, LSTM
from fastrnn.kernels.native.isa import ISA

assert ISA.name == {path!r}, ISA
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
    for precision in ("bf16", "int8") if dtype == "float32" else ():
        ours.precision = precision
        y, wanted = (layer(x, lengths=lengths)[0] for layer in (ours, oracle))
        assert 1e-5 < np.abs(y - wanted).max() < 2e-2, (cell, precision)
    if dtype == "float32":
        ours.precision = "bf16"
        y, _, tape = ours.forward(x, lengths=lengths)
        dx, _, grads = ours.backward(tape, dy)
        wanted = oracle.backward(oracle.forward(x, lengths=lengths)[2], dy)[2]
        for name, grad in grads.items():
            assert np.abs(grad - wanted[name]).max() < 2e-2 * np.abs(wanted[name]).max(), name
"""
# A digest of results, to be compared between processes.
BITS = """
import hashlib
import numpy as np
from fastrnn.layers import LSTM, RNN

rng, digest = np.random.default_rng(0), hashlib.sha256()
for cell, precision in {layers}:
    layer = cell(9, 21, 2, bidirectional=True, precision=precision, seed=0)
    x, dy = rng.standard_normal((7, 5, 9)), rng.standard_normal((7, 5, 42))
    y, _, tape = layer.forward(x, lengths=[7, 0, 3, 5, 1])
    dx, _, grads = layer.backward(tape, dy)
    for array in (y, dx, *grads.values()):
        digest.update(array.tobytes())
    for layer.precision in "bf16", "int8":
        digest.update(layer(x)[0].tobytes())
print(digest.hexdigest())
"""
paths = pytest.mark.parametrize("path", list(isa.ISAS))


def needs(path):
    if path not in isa.usable():
        pytest.skip(f"this CPU has no {path}")


@paths
def test_path(path, tmp_path):
    needs(path)
    python(CHECK.format(path=path), tmp_path, FASTRNN_ISA=path)


@pytest.mark.slow
@paths
def test_code_compiled_at_run_time_has_the_same_bits(path, tmp_path):
    needs(path)
    pytest.importorskip("numba")
    # A path with a base has kernels of its own only for lower precision.
    layers = '(LSTM, "bf16"),' if isa.ISAS[path].base else '(LSTM, "float32"), (RNN, "bf16")'
    code = BITS.format(layers=layers)
    digests = []
    for use_jit in ("", "1"):
        digests.append(python(code, tmp_path, FASTRNN_ISA=path, FASTRNN_JIT=use_jit))
    assert digests[0] == digests[1]


@pytest.mark.skipif(not isa.X86, reason="the names of registers are x86's")
@paths
def test_registers_of_the_path(path, tmp_path):
    """Also for a path that this CPU cannot run."""
    pytest.importorskip("numba")
    code = """
from fastrnn.cells import CELLS
from fastrnn.kernels.native.formats import FORMATS
from fastrnn.kernels.native.source import compiler, fused
form = FORMATS["float32"]
print(compiler.assembly(fused.forward(form, CELLS["lstm"], False), form))
"""
    text = python(code, tmp_path, FASTRNN_COMPILE_FOR=path)
    assert ("zmm" in text) == (path in ("amx", "avx512_bf16", "avx512"))
    assert ("ymm" in text) == (path != "generic")
    assert "xmm" in text


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="FASTRNN_ISA is 'mmx'; this CPU can run"):
        python("import fastrnn; fastrnn.LSTM(2, 2)", tmp_path, FASTRNN_ISA="mmx")
