"""Compile every CUDA kernel without a GPU, and say what the result is like: a script of its own,
as the tests' process has the kernels as plain Python.

    NUMBA_ENABLE_CUDASIM=0 python tests/cuda_offline.py

prints a line of JSON for each kernel and architecture.
"""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cuda.core import Linker, LinkerOptions, ObjectCode
from numba import cuda, types
from numba.cuda import dispatcher

from fastrnn.kernels.cuda import gemm, loops, recurrent

ARCHITECTURES = (8, 0), (9, 0)
INT, BOOL = types.int64, types.boolean


def array(dtype, ndim=1):
    return types.Array(getattr(types, str(dtype)), ndim, "C")


def device_library() -> ObjectCode:
    """What the grid's barrier is in."""
    found = importlib.util.find_spec("nvidia").submodule_search_locations
    paths = [p for root in found for p in Path(root).glob("cu13/lib/libcudadevrt.a")]
    return ObjectCode.from_library(str(paths[0]))


def compiled(kernel, signature, cc) -> dict:
    """Registers, spilled bytes and so on of one kernel."""
    # Device functions ask the device that is there for its architecture.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    ptx, _ = cuda.compile(
        kernel.function.py_func, types.void(*signature), cc=cc, device=False, abi="numba",
        output="ptx", launch_bounds=(kernel.block, 1),
    )  # fmt: skip
    parts = [ObjectCode.from_ptx(ptx.encode())]
    if "cudaCG" in ptx:
        parts.append(device_library())
    options = LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", ptxas_options=["-v"])
    linker = Linker(*parts, options=options)
    size, log = len(linker.link("cubin").code), linker.get_info_log()
    return {
        "architecture": f"sm_{cc[0]}{cc[1]}",
        "threads": kernel.block,
        "registers": max(map(int, re.findall(r"Used (\d+) registers", log))),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "stack": max(map(int, re.findall(r"(\d+) bytes stack", log))),
        "waits for the grid": "cudaCG" in ptx,
        "float64": ".f64" in ptx,
        "mma": ptx.count("mma.sync"),
        "cubin": size,
    }


def kernels():
    """``(name, kernel, signature)`` of each."""
    for dtype in map(np.dtype, ("float32", "float64")):
        one, two, ids = array(dtype), array(dtype, 2), array("int64")
        for cell in loops.LAYOUTS:
            if dtype == "float64" and cell != "lstm":
                continue  # the same source
            for keep in (True, False):
                name = f"{cell} {dtype}{', weights kept' if keep else ''}"
                made = loops.forward_loop(cell, 256, dtype, keep)
                assert made.kept == keep
                yield f"forward {name}", made.kernel, (
                    one, one, two, INT, two, two, two, INT, ids, ids, INT, BOOL, BOOL,
                )  # fmt: skip
                made = loops.backward_loop(cell, 256, dtype, keep)
                yield f"backward {name}", made.kernel, (
                    one, two, INT, two, two, INT, two, two, ids, ids, INT, BOOL,
                )  # fmt: skip
        part = one, INT, INT
        yield f"product {dtype}", gemm._product(dtype), (
            *part, INT, *part, INT, one, *part, INT, INT, INT, BOOL,
        )  # fmt: skip
        yield f"sum_rows {dtype}", gemm._sum_rows(dtype), (*part, INT, INT, one)
        yield f"pick {dtype}", gemm._pick(dtype), (*part, ids, *part, INT)
        yield f"put_back {dtype}", gemm._put_back(dtype), (*part, ids, *part, INT)
        yield f"place {dtype}", recurrent._place(dtype), (two, INT, two, ids, ids, INT, BOOL)


def main() -> None:
    for name, kernel, signature in kernels():
        for cc in ARCHITECTURES:
            print(json.dumps({"kernel": name} | compiled(kernel, signature, cc)), flush=True)


if __name__ == "__main__":
    main()
