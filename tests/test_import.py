"""What an import costs and shows."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires

import pytest

import fastrnn
from fastrnn._native import names
from fastrnn.extras import needs
from fastrnn.kernels.native import jit
from fastrnn.kernels.native.isa import ISA


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_alone_loads_nothing_heavy():
    loaded = python("import sys, fastrnn; print(*sys.modules)")
    assert not {"numpy", "numba", "scipy", "torch", "matplotlib", "typer"} & set(loaded)


def test_nothing_of_a_framework_is_loaded_by_a_layer():
    loaded = python("import sys, fastrnn; fastrnn.LSTM(2, 2); print(*sys.modules)")
    assert not {"torch", "matplotlib", "typer", "pandas"} & set(loaded)


EVERYTHING = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # an import of either fails
import numpy as np
import fastrnn
from fastrnn.cells import CELLS

x, lengths = np.random.default_rng(0).standard_normal((5, 4, 3)), [5, 2, 0, 4]
for name in CELLS:
    family, _, variant = name.partition("_")
    more = {"nonlinearity": variant} if family == "rnn" else {"variant": variant or None}
    more |= {"proj_size": 4} if variant == "projected" else {}
    more |= {"constants": dict.fromkeys(CELLS[name].unit_constants, 1.0)}
    more = {k: v for k, v in more.items() if v}
    for dtype in ("float32", "float64"):
        for options in {}, {"zoneout": 0.1, "recurrent_dropout": 0.1}:
            make = getattr(fastrnn, family.upper())
            layer = make(3, 6, bidirectional=True, dtype=dtype, seed=0, **more, **options)
            y, _, tape = layer.forward(x, lengths=lengths)
            _, _, grads = layer.backward(tape, y)
            fastrnn.Adam().step(layer.parameters, grads, max_norm=1.0)
from fastrnn.models import Tagger
tagger = Tagger(word_dim=4, hidden_size=5, char_hidden=3, crf=True, epochs=1)
tagger.fit([["a", "b"], ["c"]], [["O", "B-X"], ["O"]]).predict([["a"]])
from fastrnn.bench.timing import fma_peak
fma_peak(0.01)
try:
    fastrnn.RNN(2, 2, activations=("softsign",))(np.zeros((1, 1, 2)))
except ImportError:
    print("needs Numba")
"""


@pytest.mark.skipif(not names(ISA.name), reason="no kernels were precompiled")
def test_nothing_but_other_activations_needs_numba():
    assert python(EVERYTHING) == ["needs", "Numba"]


def test_a_kernel_that_cannot_be_compiled_says_what_to_install(monkeypatch):
    def no_numba():
        raise PackageNotFoundError("numba")

    monkeypatch.setattr(jit, "_folder", no_numba)
    with pytest.raises(ImportError, match=r'extra \[jit\]\): pip install "numba>='):
        jit.load("some.kernel", "float32", lambda: None)


def test_every_public_name_is_there():
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None, name
    assert set(fastrnn.__all__) <= set(dir(fastrnn))
    with pytest.raises(AttributeError, match="has no attribute 'GPU'"):
        fastrnn.GPU  # noqa: B018


def test_the_source_folder_says_what_to_do(tmp_path):
    (tmp_path / "fastrnn").mkdir()
    shutil.copy(fastrnn.__file__, tmp_path / "fastrnn")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import fastrnn"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "is the source folder, without compiled modules: start Python in another" in done.stderr


@pytest.mark.parametrize("extra", ["jit", "cli", "plot", "torch", "onnx", "keras", "glove", "cuda"])
def test_hints_name_packages_of_the_extra(extra):
    hint = needs("x", extra)
    named = {re.match("[a-z-]+", name)[0] for name in re.findall('"([^"]+)"', hint)}
    declared = [r for r in requires("fastrnn") if f'extra == "{extra}"' in r.replace("'", '"')]
    assert named and named == {re.match("[a-z-]+", r)[0] for r in declared}
    assert "fastrnn" not in named and hint.startswith(f"x (extra [{extra}]): pip install ")
