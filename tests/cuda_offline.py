"""Compile every CUDA kernel without a GPU, and say what the result is like: a script of its own,
as the tests' process has the kernels as plain Python.

    NUMBA_ENABLE_CUDASIM=0 python tests/cuda_offline.py

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

from fastrnn.kernels.cuda import cluster, gemm, loops, moves, pointwise, update
from fastrnn.kernels.cuda.launch import machine_code

INT, IDS, WORDS = "int64", "*int64", "*uint32"


def kernels():
    """``(name, kernel, signature, architectures)`` of each."""
    everywhere, newer = ((8, 0), (9, 0)), ((9, 0),)
    for dtype in map(np.dtype, ("float32", "float64")):
        p, number = f"*{dtype}", dtype.name
        for cell in loops.LAYOUTS:
            if dtype == "float64" and cell != "lstm":
                continue  # the same source
            for keep in (True, False):
                name = f"{cell} {dtype}{', weights kept' if keep else ''}"
                made = loops.forward_loop(cell, 256, dtype, keep)
                assert made.kept == keep
                signature = p, p, p, INT, INT, p, p, p, INT, INT, IDS, IDS, INT, INT, INT, INT
                yield f"grid forward {name}", made.kernel, signature, everywhere
                made = loops.backward_loop(cell, 256, dtype, keep)
                signature = p, p, INT, INT, p, p, INT, INT, p, p, IDS, IDS, INT, INT, INT
                yield f"grid backward {name}", made.kernel, signature, everywhere
        part = p, INT, INT
        signature = *part, INT, *part, INT, p, INT, *part, INT, INT, INT, INT
        yield f"product {dtype}", gemm._product(dtype), signature, everywhere
        yield f"sum_rows {dtype}", gemm._sum_rows(dtype), (*part, INT, INT, p), everywhere
        yield f"pick {dtype}", gemm._pick(), (*part, IDS, INT, *part, INT), everywhere
        signature = p, p, IDS, IDS, INT, INT, INT, INT
        yield f"place {dtype}", moves._place(), signature, everywhere
        yield f"move {dtype}", moves._move(), (p, INT, p, INT, INT, INT), everywhere
        yield f"fill {dtype}", moves._fill(dtype), (p, INT), everywhere
        yield f"take {dtype}", moves._take(), (p, IDS, p, INT, INT), everywhere
        yield f"put {dtype}", moves._put(), (p, IDS, p, INT, INT), everywhere
        signature = p, INT, INT, INT, INT, number
        yield f"dropout {dtype}", pointwise._dropout(), signature, everywhere
        yield f"scale {dtype}", pointwise._scale(), (p, p, IDS, INT, INT), everywhere
        signature = p, IDS, INT, INT, number, p, p
        yield f"cross_entropy {dtype}", pointwise._cross_entropy(dtype), signature, everywhere
        signature = *part, IDS, IDS, IDS, *part, INT, INT, INT
        yield f"sum_groups {dtype}", gemm._sum_groups(dtype), signature, everywhere
        signature = p, p, p, *(4 * [number]), INT, INT
        yield f"sgd {dtype}", update._sgd(), signature, everywhere
        yield f"adam {dtype}", update._adam(), (*(4 * [p]), *(9 * [number]), INT), everywhere
        signature = p, INT, "*float64"
        yield f"squares of {dtype}, in float64", update._squares(), signature, everywhere
    f = "*float32"
    for precision in cluster.PRECISIONS:
        made = cluster.plan(256, precision, 227 << 10)
        assert (made.blocks, made.own, made.in_registers) == (8, 32, 128)
        name = f"{precision}, {made.in_registers} of {made.words} words in registers"
        signature = (
            WORDS,
            f,
            f,
            INT,
            INT,
            f,
            f,
            INT,
            f,
            f,
            f,
            INT,
            INT,
            IDS,
            IDS,
            INT,
            INT,
            INT,
            INT,
            INT,
        )
        yield f"cluster forward {name}", cluster.forward(made), signature, newer
        signature = WORDS, f, INT, INT, f, f, INT, INT, f, f, INT, IDS, IDS, INT, INT, INT
        yield f"cluster backward {name}", cluster.backward(made), signature, newer
        yield f"pack {name}", cluster.pack(made, True), (f, INT, WORDS), everywhere


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
    name, kernel, signature, architectures = list(kernels())[number]
    rows = []
    for capability in architectures:
        # Device functions ask the device that is there for its architecture.
        here = SimpleNamespace(compute_capability=capability)
        dispatcher.get_current_device = lambda here=here: here
        _, code, ptx, log = machine_code(kernel, signature, capability)
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
