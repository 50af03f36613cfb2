"""What an import costs and shows."""

import os
import subprocess
import sys

import pytest

import fastrnn


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


def test_every_public_name_is_there():
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None, name
    assert set(fastrnn.__all__) <= set(dir(fastrnn))
    with pytest.raises(AttributeError, match="has no attribute 'GPU'"):
        fastrnn.GPU  # noqa: B018
