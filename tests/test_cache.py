"""The cache of compiled kernels saves time and never costs anything else."""

import os
import subprocess
import sys

import pytest

RUN = """
import warnings
warnings.simplefilter("error")
import numpy as np
from fastrnn.kernels.cpu import update
print(update.norm(np.full(4, 2.0, np.float32)), len(update._squares.stats.cache_hits))
"""


def run(folder, cwd=None):
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=os.environ | {"FASTRNN_CACHE_DIR": str(folder)},
        capture_output=True, text=True, cwd=cwd or folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    norm, hits = done.stdout.split()
    assert float(norm) == 4.0
    return int(hits)


def test_second_process_compiles_nothing(tmp_path):
    folder = tmp_path / "cache"
    assert run(folder) == 0
    assert run(folder) == 1


@pytest.mark.parametrize("keep", [0, 10, 0.5])
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_files_cost_a_compilation(tmp_path, suffix, keep):
    folder = tmp_path / "cache"
    run(folder)
    damaged = [p for p in folder.rglob("*") if p.name.endswith(suffix)]
    assert damaged
    for path in damaged:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert run(folder) == 0
    assert run(folder) == 1


def test_no_place_to_write(tmp_path):
    file = tmp_path / "a file"
    file.write_text("")
    assert run(file / "below", cwd=tmp_path) == 0
