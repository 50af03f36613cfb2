"""Compile every CUDA kernel without a GPU, and say what the result is like: a script of its own,
as the tests' process has the kernels as plain Python.

    NUMBA_ENABLE_CUDASIM=0 python tests/kernels/cuda/offline.py

prints a line of JSON for each kernel and architecture.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numba.cuda import dispatcher

from fastrnn.cells import CELLS
from fastrnn.kernels.cuda import cluster, crf, fused, gemm, moves, optim, pointwise
from fastrnn.kernels.cuda.launch import machine_code

EVERYWHERE, NEWER = ((8, 0), (9, 0)), ((9, 0),)
SIMPLE = gemm, moves, pointwise, optim, crf
# Sums that are made in float64 on purpose.
WIDE = {"squares_kernel", "gradient_kernel", "viterbi_kernel"}


def kernels():
    """``(name, kernel, architectures)`` of each; its signature is declared beside it."""
    for dtype in map(np.dtype, ("float32", "float64")):
        for module in SIMPLE:
            for name, make in vars(module).items():
                if name.endswith("_kernel") and make.__module__ == module.__name__:
                    wide = ", in float64" if name in WIDE else ""
                    yield f"{name} of {dtype}{wide}", make(dtype), EVERYWHERE
        for key, cell in CELLS.items():
            if cell.program or (dtype == "float64" and key != "lstm"):
                continue  # no loop, or the same source
            for keep in (True, False):
                name = f"{key} {dtype}{', weights kept' if keep else ''}"
                for make in (fused.forward_loop, fused.backward_loop):
                    made = make(cell, 256, dtype, keep)
                    assert made.kept == keep
                    yield f"grid {make.__name__} {name}", made.kernel, EVERYWHERE
    for precision in cluster.PRECISIONS:
        made = cluster.plan(256, precision, 227 << 10)
        assert (made.blocks, made.block_units, made.in_registers) == (8, 32, 128)
        name = f"{precision}, {made.in_registers} of {made.words} words in registers"
        yield f"cluster forward {name}", cluster.forward(made), NEWER
        yield f"cluster backward {name}", cluster.backward(made), NEWER
        yield f"pack {name}", cluster.pack(made, True), EVERYWHERE


@cache
def disassembler() -> str | None:
    """NVIDIA's, from the package nvidia-cuda-nvdisasm or a toolkit."""
    found = importlib.util.find_spec("nvidia").submodule_search_locations
    here = [str(p) for root in found for p in Path(root).glob("*/bin/nvdisasm")]
    return here[0] if here else shutil.which("nvdisasm")


def disassembled(code: bytes) -> str:
    """The machine's own instructions; none without a disassembler."""
    tool = disassembler()
    if tool is None:
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([tool, file.name], capture_output=True, text=True, check=True).stdout


def compiled(number: int) -> list[dict]:
    """What became of the kernel of that number."""
    name, kernel, architectures = list(kernels())[number]
    rows = []
    for capability in architectures:
        # Device functions ask the device that is there for its architecture.
        here = SimpleNamespace(compute_capability=capability)
        dispatcher.get_current_device = lambda here=here: here
        _, code, ptx, log = machine_code(kernel, capability)
        machine = disassembled(code.code) if name.startswith("cluster") else ""
        rows.append({
            "kernel": name,
            "architecture": "sm_{}{}".format(*capability),
            "threads": kernel.block,
            "registers": max(map(int, re.findall(r"Used (\d+) registers", log))),
            "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
            "stack": max(map(int, re.findall(r"(\d+) bytes stack", log))),
            "local memory": len(re.findall(r"\b(?:LDL|STL)\b", machine)),
            "tensor cores": len(re.findall(r"\bHMMA\b", machine)),
            "shuffles": len(re.findall(r"\bSHFL\b", machine)),
            "cluster barriers": len(re.findall(r"\bUCGABAR_ARV\b", machine)),
            "disassembled": bool(machine),
            "float64": ".f64" in ptx,
        })  # fmt: skip
    return rows


def main() -> None:
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(compiled, range(len(list(kernels())))):
            for row in rows:
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
