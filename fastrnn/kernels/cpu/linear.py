"""Matrix products on our own tiles and threads: the linear layer, and the jobs it is made of.

A threaded BLAS would be as fast, but its waiting workers spin on the cores that we need.
"""

from functools import cached_property

import numpy as np

from fastrnn.kernels.native.formats import Format, choose
from fastrnn.kernels.native.isa import PANEL, width
from fastrnn.kernels.native.layouts import plain_columns
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import BLOCK, Panels, Products, Runs, Sums
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for, run, threads_for

# The cost of packing one number, whole vectors at a time, in multiply-adds.
_PACK_COST = MOVE_COST // 4


def row_size(columns: int, dtype) -> int:
    """Numbers from row to row of an array that is read in vectors.

    A row is not a multiple of 1 KB: its columns would share few cache sets.
    """
    n, itemsize = width(np.float32) if dtype.itemsize == 2 else width(dtype), dtype.itemsize
    size = -(-columns // n) * n
    return size + n * (size * itemsize % 1024 == 0)


def activations(form: Format, a: np.ndarray) -> tuple[np.ndarray, list[Job]]:
    """Rows in the type that a format multiplies, and the job that converts them, if any."""
    if form.activations == form.numbers:
        return a, []
    out = empty_activations(form, len(a), a.shape[1])
    return out, [Job(find("rows.to_activations", form), (a, out), len(a), a.size * MOVE_COST)]


def empty_activations(form: Format, rows: int, columns: int) -> np.ndarray:
    """Uninitialised rows of the type that a format multiplies."""
    dtype = np.dtype(form.activations)
    vector = width(np.float32)
    size = row_size(form.row_head + -(-columns // vector) * vector, dtype)
    return buffers.empty((rows + form.spare_rows, size), dtype)[:rows]


def zipped(form: Format, a: np.ndarray, depth: int, rows: int) -> tuple[np.ndarray, list[Job]]:
    """The first ``depth`` columns as `weight_gradient` takes them, and what to run before."""
    if form.step == 1:
        return a, []
    block = BLOCK * form.step
    blocks = -(-rows // block)
    count = blocks * depth
    out = buffers.empty((count + form.spare_rows, block), a.dtype)[:count]
    items = blocks * -(-depth // width(np.float32))
    kernel = find("rows.zipped", form)
    return out, [Job(kernel, (a, depth, rows, out), items, rows * depth * _PACK_COST)]


def product(form: Format, a, runs: Runs, panels, bias, out: Panels) -> Job:
    """``a @ panels`` into columns of ``out``."""
    args = (a, runs, panels, bias, out)
    return Job(find("gemm.product", form), args, len(a), len(a) * panels.size)


def weight_gradient(form: Format, a, b: Products, sums: Sums, columns, out) -> Job:
    """The gradient of a weight from the input (`zipped`) and the gradient of the result."""
    q, depth, _ = sums.packed.shape
    cost = (len(b.values) + _PACK_COST) * sums.packed.size
    args = (a, depth, b, sums, columns, out)
    # In whole panels, as each piece copies those that it has a part of.
    return Job(find("gemm.weight_gradient", form), args, q * depth, cost, group=depth)


def new_sums(q: int, depth: int, panel: int, dtype) -> Sums:
    """Uninitialised."""
    return Sums(buffers.empty((q, depth, panel), dtype), np.empty((q, panel), dtype))


def pack_forward(form: Format, w, columns, out) -> Job:
    """`panels.pack_forward` of all panels."""
    kernel = find("panels.pack_forward", form)
    return Job(kernel, (w, columns, out), len(out), out.size * _PACK_COST)


def pack_backward(form: Format, w, columns, out, offset=0) -> Job:
    """`panels.pack_backward` of all panels."""
    cost = len(columns) * len(out) * out.shape[2] * _PACK_COST
    kernel = find("panels.pack_backward", form)
    return Job(kernel, (w, columns, out, offset), len(out), cost)


class LinearWeights:
    """``weight [O, I]`` and ``bias [O]`` or None, packed when first needed."""

    def __init__(self, weight, bias, precision: str = "float32"):
        self.weight, self._bias = weight, bias
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self.inference = choose(precision, self.dtype, training=False)
        self.gradients = choose(precision, self.dtype, training=True)
        self.panel = PANEL * width(self.dtype)
        self.columns = plain_columns(self.outputs, self.dtype)
        self._forward: dict[str, np.ndarray] = {}  # by format

    def forward(self, form: Format) -> np.ndarray:
        """Packed for the product with x."""
        out = self._forward.get(form.name)
        if out is None:
            shape = (len(self.columns) // self.panel, form.depth(self.inputs), self.panel)
            out = buffers.empty(shape, np.dtype(form.weights))
            parallel_for(pack_forward(form, self.weight, self.columns, out))
            self._forward[form.name] = out
        return out

    @cached_property
    def bias(self) -> np.ndarray:
        out = np.zeros((len(self.columns) // self.panel, self.panel), self.dtype)
        if self._bias is not None:
            out.reshape(-1)[: self.outputs] = self._bias
        return out

    @cached_property
    def backward(self) -> np.ndarray:
        form = self.gradients
        shape = (-(-self.inputs // self.panel), form.depth(self.outputs), self.panel)
        out = buffers.empty(shape, np.dtype(form.weights))
        parallel_for(pack_backward(form, self.weight, np.arange(self.outputs), out))
        return out


def linear_forward(weights: LinearWeights, x, *, training: bool = False) -> np.ndarray:
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w, form = weights, weights.gradients if training else weights.inference
    y = buffers.empty((len(x), w.outputs), w.dtype)
    a, before = activations(form, x)
    to = Panels(y, 0, w.panel, w.outputs)
    _run(before, [product(form, a, Runs(1, w.inputs, 0), w.forward(form), w.bias, to)])
    return y


def linear_backward(weights: LinearWeights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    form = weights.gradients
    b, before = activations(form, dy)
    dx, jobs = None, list[Job]()
    if need_dx:
        dx, job = _input_gradient(weights, b)
        jobs.append(job)
    dweight, totals, convert, zips, job = _weight_gradient(form, x, b, dy.shape[1])
    _run([*before, *convert], zips, [*jobs, job])
    return dx, dweight, totals.reshape(-1)[: weights.outputs].copy()


def input_gradient(weights: LinearWeights, dy) -> np.ndarray:
    """``dy @ weight``, [N, I]."""
    b, before = activations(weights.gradients, dy)
    dx, job = _input_gradient(weights, b)
    _run(before, [job])
    return dx


def dense_weight_gradient(form: Format, x, dy) -> np.ndarray:
    """``dy.T @ x``, [O, I]."""
    b, before = activations(form, dy)
    dweight, _, convert, zips, job = _weight_gradient(form, x, b, dy.shape[1])
    _run([*before, *convert], zips, [job])
    return dweight


def _run(*phases: list[Job]) -> None:
    run(list(phases), threads_for(sum([job.cost for phase in phases for job in phase])))


def _input_gradient(w: LinearWeights, dy) -> tuple[np.ndarray, Job]:
    dx = buffers.empty((len(dy), w.inputs), w.dtype)
    zero = np.zeros((len(w.backward), w.panel), w.dtype)
    to = Panels(dx, 0, w.panel, w.inputs)
    return dx, product(w.gradients, dy, Runs(1, w.outputs, 0), w.backward, zero, to)


def _weight_gradient(form: Format, x, dy, outputs: int):
    """``(dweight, sums of dy in panels, what converts x, what zips it, the job after those)``."""
    inputs, dtype = x.shape[1], x.dtype
    panel, columns = PANEL * width(dtype), plain_columns(outputs, dtype)
    sums = new_sums(len(columns) // panel, inputs, panel, dtype)
    dweight = buffers.empty((outputs, inputs), dtype)
    a, convert = activations(form, x)
    a, zips = zipped(form, a, inputs, len(x))
    job = weight_gradient(form, a, Products(dy, 0, panel, outputs), sums, columns, dweight)
    return dweight, sums.totals, convert, zips, job
