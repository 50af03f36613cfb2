"""Compile the kernels of one format for one instruction-set path ahead of time, as setup.py does.

    FASTRNN_COMPILE_FOR=avx2 python -m fastrnn.kernels.native.source.build float32 FOLDER

writes an object file for each kernel, ``avx2_float32_0.o`` and so on, and at the end
``avx2_float32.h`` with a line for each.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.cells import CELLS, Cell
from fastrnn.kernels import unfused
from fastrnn.kernels.native.formats import FORMATS, Format, plain
from fastrnn.kernels.native.identity import full_name
from fastrnn.kernels.native.isa import ISA
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch

from . import compiler

MODULES = ("crf", "gemm", "optim", "panels", "peak", "pointwise", "rows", "unfused")


def products(form: Format) -> list[str]:
    """The kernels that are made for a format."""
    names = ["gemm.product", "panels.pack_forward", "fused.forward"]
    if form.trains:
        names += ["gemm.weight_gradient", "gemm.table_gradient", "gemm.token_sums"]
        names += ["panels.pack_backward", "fused.backward"]
    if form.rounds:
        names += ["rows.begin_h", "rows.zipped"]
    if form.rounds or form.quantises:
        names.append("rows.to_activations")
    return names


def kernels(form: Format) -> Iterator[tuple[str, tuple, Any]]:
    """``(name, of, kernel)`` of each, see `library.find`."""
    for path in products(form):
        module, name = path.split(".")
        make = getattr(import_module(f".{module}", __package__), name)
        if module != "fused":
            yield path, (), make(form)
            continue
        for cell in CELLS.values():
            for of in ((cell, False), (cell, True)) if not cell.program else ():
                yield path, of, make(form, *of)
    if form == plain(np.dtype(form.numbers)):
        yield from _others(form)


def _others(form: Format) -> Iterator[tuple[str, tuple, Any]]:
    """Those without products."""
    for module in MODULES:
        source = import_module(f".{module}", __package__)
        for name, value in vars(source).items():
            if compiler.is_kernel(value) and not name.startswith("_"):
                yield f"{module}.{name}", (), value
    elementwise = import_module(".unfused", __package__).elementwise
    for cell in CELLS.values():
        for of in elementwise_functions(cell) if cell.program else ():
            yield "unfused.elementwise", of, elementwise(form, *of)


class _Recorder:
    """`unfused.Ops` that compute nothing and note which elementwise functions are asked for."""

    def __init__(self, seen: dict[tuple, None], cell: Cell, p):
        self.seen, self.cell, self.p = seen, cell, p

    def empty(self, shape):
        return np.zeros(shape, np.float32)

    zeros = empty

    def project(self, x, bias):
        return self.empty((len(x), len(self.p["weight_ih"])))

    def project_backward(self, x, dy, need_dx):
        return self.empty(x.shape), self.empty(self.p["weight_ih"].shape)

    def product(self, weight, source):
        return self.empty((len(source), len(unfused.resolve(self.cell, self.p, weight))))

    def product_backward(self, weight, dy):
        return self.empty((len(dy), unfused.resolve(self.cell, self.p, weight).shape[1]))

    def weight_gradient(self, source, dy):
        return self.empty((dy.shape[1], source.shape[1]))

    def elementwise(self, function, count, *inputs):
        self.seen[self.cell, function, len(inputs), count] = None
        arrays = [x[0] if isinstance(x, tuple) else x for x in inputs]
        rows = next((len(x) for x in arrays if x.ndim == 2), 1)
        width = next(x for x in inputs if not isinstance(x, tuple)).shape[-1]
        return [self.empty((rows, width)) for _ in range(count)]

    def join(self, blocks):
        return np.concatenate(blocks, axis=1)

    def split(self, x, widths):
        return np.split(x, np.cumsum(widths)[:-1], axis=1)

    def stack(self, arrays):
        return np.stack(arrays)

    def normalise(self, x):
        return self.empty(x.shape), self.empty((len(x), 1))

    def normalise_backward(self, dy, y, factor):
        return self.empty(y.shape)

    def sum_rows(self, x):
        return x.sum(axis=0)


def elementwise_functions(cell: Cell) -> list[tuple]:
    """``(cell, function, inputs, outputs)`` of what `unfused.Ops.elementwise` computes for a cell:
    found by a pass in both directions."""
    units, size = 4, 2 if any("P" in p.shape for p in cell.parameters) else 4
    gates = len(cell.gates) * units
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, 3), "weight_hh": (gates, size)}
    shapes |= dict.fromkeys(("bias_ih", "bias_hh"), (gates,))
    shapes |= {parameter.name: cell.shape(parameter, units, size) for parameter in cell.parameters}
    p = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    seen = dict[tuple, None]()
    weights = unfused.UnfusedWeights(cell, [p, p], lambda cell, p, _: _Recorder(seen, cell, p))
    packed, x = PackedBatch(2, 3), np.zeros((6, 3), np.float32)
    sizes = [size if name == "h" else units for name in cell.states]
    state = tuple(np.zeros((2, 3, n), np.float32) for n in sizes)
    masks = StepMasks(np.zeros((2, 6, sum(sizes)), np.float32), np.zeros((2, 3, size), np.float32))
    for given in (None, masks):
        y, _, tape = unfused.recurrent_forward(
            weights, x, packed, state, training=True, masks=given
        )
        unfused.recurrent_backward(weights, tape, y, state)
    return list(seen)


def main(name: str, folder: Path) -> None:
    """Compile those of a format."""
    folder.mkdir(parents=True, exist_ok=True)
    form = FORMATS[name]
    stem, lines, names = f"{ISA.name}_{name}", list[str](), set[str]()
    for path, of, kernel in kernels(form):
        full = full_name(path, form, *of)
        if full in names:  # functions that all unfused cells share
            continue
        names.add(full)
        symbol = f"{stem}_{len(lines)}"
        code = compiler.machine_code(kernel, f"fastrnn_{symbol}", form)
        (folder / f"{symbol}.o").write_bytes(code)
        signature = compiler.signature(kernel, form)
        lines.append(f'K({ISA.name}, {symbol}, "{full}", "{signature}")\n')
    (folder / f"{stem}.h").write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
