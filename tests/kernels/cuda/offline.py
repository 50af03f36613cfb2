"""Compile every CUDA kernel without a GPU, and say what the result is like: a script of its own,
as the tests' process has the kernels as plain Python.

    NUMBA_ENABLE_CUDASIM=0 python tests/kernels/cuda/offline.py [--table]

prints a line of JSON for each kernel and architecture, or a table in Markdown.
"""

import argparse
import json
import re
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from types import SimpleNamespace

import numpy as np
from numba.cuda import dispatcher
from sass import Code, disassembled

from fastrnn.cells import CELLS
from fastrnn.kernels.cuda import (
    crf,
    fused,
    gemm,
    machine,
    moves,
    optim,
    placement,
    pointwise,
    tensor,
    unfused,
)
from fastrnn.kernels.native.source.build import elementwise_functions

CLUSTERS = ((9, 0), (10, 0), (12, 0))  # have them
SHARED = {(8, 0): 163, (9, 0): 227, (10, 0): 227, (12, 0): 99}  # KB of shared memory of a block
EVERYWHERE = ((8, 0), *CLUSTERS)
# By cell and whether blocks are clusters: units, precision and the KB of shared memory that they
# need, the most that fits in all architectures and in some.
LAYOUTS = {
    ("lstm", True): [
        (128, "float32", 99), (128, "tf32", 99), (256, "bf16", 99),
        (256, "float32", 227), (512, "bf16", 227),
    ],
    ("gru", True): [(256, "bf16", 99)],
    ("rnn_tanh", True): [(256, "bf16", 99), (1024, "bf16", 227)],
    ("lstm", False): [
        (256, "float32", 99), (256, "bf16", 99), (1024, "bf16", 227),
    ],
    ("gru", False): [(512, "bf16", 163)],
    ("rnn_tanh", False): [(256, "float32", 99)],
}  # fmt: skip
SIMPLE = gemm, moves, pointwise, optim, crf, unfused
# Whose instructions are read, which takes longer than all else.
LOOKED_AT = re.compile("grid .* lstm float|cluster|group|product")
# Sums that are made in float64 on purpose.
WIDE = {
    "squares_kernel", "gradient_kernel", "viterbi_kernel", "normalise_kernel",
    "normalise_backward_kernel",
}  # fmt: skip
# How the assembler writes the kinds of `Arguments`.
PTX_KINDS = {"pointer": "u64", "int64": "u64", "uint64": "u64", "float32": "f32", "float64": "f64"}


def kernels():
    """``(name, kernel, architectures)`` of each; its signature is declared beside it."""
    for dtype in map(np.dtype, ("float32", "float64")):
        for module in SIMPLE:
            for name, make in vars(module).items():
                if name.endswith("_kernel") and make.__module__ == module.__name__:
                    if make is unfused.elementwise_kernel:
                        continue  # see below
                    wide = ", in float64" if name in WIDE else ""
                    yield f"{name} of {dtype}{wide}", make(dtype), EVERYWHERE
        for key, cell in CELLS.items():
            if dtype == "float64" and key not in ("lstm", "lstm_projected"):
                continue  # the same source
            if cell.program:
                for _, function, *counts in elementwise_functions(cell):
                    made = unfused.elementwise_kernel(function, *counts, dtype)
                    yield f"{key} {function.__name__} {dtype}", made, EVERYWHERE
                continue
            for keep, masked in ((True, False), (False, False), (True, True)):
                others = key not in ("lstm", "gru") or (masked and dtype == "float64")
                if others and (masked or not keep):
                    continue  # what changes is the same for all
                name = f"{key} {dtype}{', weights kept' * keep}{', masks' * masked}"
                for make in (fused.forward_loop, fused.backward_loop):
                    made = make(cell, 256, dtype, keep, masked)
                    assert made.kept == keep
                    yield f"grid {make.__name__} {name}", made.kernel, EVERYWHERE
    for (name, is_cluster), layouts in LAYOUTS.items():
        for units, precision, shared in layouts:
            yield from on_tensor_cores(CELLS[name], units, precision, shared, is_cluster)


def on_tensor_cores(cell, units, precision, shared, is_cluster):
    kind = "cluster" if is_cluster else "group"
    architectures = [a for a in (CLUSTERS if is_cluster else EVERYWHERE) if SHARED[a] >= shared]
    made = placement.plan(
        units, precision, cell.accumulators, cell.accumulators, shared << 10,
        is_cluster=is_cluster,
    )  # fmt: skip
    assert made.units == units
    what = f"{precision}, {units} units, {made.in_registers} of {made.words} words in registers"
    for make in (tensor.forward, tensor.backward):
        yield f"{kind} {make.__name__} {cell.name} {what}", make(cell, made), architectures
    yield (
        f"pack {cell.name} {kind} {what}",
        placement.pack(made, cell.first_recurrent),
        architectures,
    )


every_kernel = cache(lambda: tuple(kernels()))


def compiled(number: int) -> list[dict]:
    """What became of the kernel of that number."""
    name, kernel, architectures = every_kernel()[number]
    # Device functions ask the device that is there for its architecture.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=kernel.least)
    rows, ptx = [], machine.ptx_of(kernel)
    entry = ptx[ptx.index(".entry") :]
    for capability in architectures:
        code, log = machine.compiled(kernel, capability)
        given = re.findall(r"\.param \.\w*?(\w\d+)", entry[: entry.index("{")])
        looked_at = LOOKED_AT.match(name)
        assembled = disassembled(code) if looked_at else None
        rows.append({
            "kernel": name,
            "architecture": "sm_{}{}".format(*capability),
            "threads": kernel.block,
            "registers": max(map(int, re.findall(r"Used (\d+) registers", log))),
            "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
            "stack": max(map(int, re.findall(r"(\d+) bytes stack", log))),
            "float64": ".f64" in ptx,
            "parameters agree": [PTX_KINDS[k] for k in kernel.arguments.kinds] == given,
            "looked at": bool(looked_at),
        })  # fmt: skip
        if assembled:
            rows[-1] |= facts(assembled)
    return rows


def facts(code: Code) -> dict:
    """What the machine's instructions say."""
    return {
        "instructions": len(code.instructions),
        "instructions per multiply-add": code.per_multiply,
        "local memory": code.count("LDL|STL"),
        "tensor cores": code.count("HMMA"),
        "shuffles": code.count("SHFL"),
        "cluster barriers": code.count("UCGABAR_ARV"),
        "in a step": len(code.steps),
        "fences in a step": code.count("MEMBAR", code.steps),
        "loads waited for": code.exposed_loads,
    }


COLUMNS = (
    "kernel", "architecture", "threads", "registers", "instructions per multiply-add", "in a step",
    "fences in a step", "loads waited for",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only loops and products, as a table")
    table = parser.parse_args().table
    if table:
        print(f"| {' | '.join(COLUMNS)} |\n|---|---{'|--:' * (len(COLUMNS) - 2)}|")
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(compiled, range(len(every_kernel()))):
            for row in rows:
                if not table:
                    print(json.dumps(row), flush=True)
                elif row["looked at"]:
                    print("|", " | ".join(str(row.get(c)) for c in COLUMNS), "|", flush=True)


if __name__ == "__main__":
    main()
