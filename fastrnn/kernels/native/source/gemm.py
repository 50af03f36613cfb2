"""Matrix products over packed panels: rows times panels, and sums over the rows.

Serial kernels over a range of rows or of tiles, on the layouts of layouts.py.
"""

from functools import cache
from typing import Any, NamedTuple

from numba.extending import register_jitable

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.isa import PANEL
from fastrnn.kernels.native.records import BLOCK, DEPTH, Panels, Products, Runs, Sums
from fastrnn.kernels.signature import A2, F1, F2, I1, P3, I
from fastrnn.kernels.unrolled import statements, tuple_function

from .bfloat16 import zip_vectors
from .compiler import kernel
from .panels import unpack_gradient
from .simd import at_address, lane_count, line, load, pointer, prefetch, store, zeros_like
from .tile import (
    Row,
    Segment,
    finish_row,
    init_columns,
    init_row,
    init_zero,
    tile,
    tile_rows,
)


@cache
def product(form: Format):
    """A kernel that multiplies rows by panels."""
    product_tile, most = tile(form, init_columns, finish_row), form.tile_rows
    # Sums of integers are only scaled when they are complete.
    longest = 1 << 62 if form.quantises else DEPTH

    def run(a: A2, runs: Runs, panels: P3, bias: F2, out: Panels, first: I, last: I):
        """``out[p] = bias + a[p, runs] @ panels`` for the rows p in [first, last).

        a [N, .]; panels [Q, blocks * length, v W]; bias [Q, >= v W].
        """
        a_p, b_p, bias_p, out_p = pointer(a), pointer(panels), pointer(bias), pointer(out.values)
        n, depth, panel = lane_count(out_p), panels.shape[1], panels.shape[2]
        a_stride, out_stride, bias_stride = a.shape[1], out.values.shape[1], bias.shape[1]
        most_k = longest if runs.blocks == 1 else runs.length
        p0 = first
        while p0 < last:  # these rows stay in cache while the panels pass by
            p1, k0 = min(p0 + BLOCK // 2, last), 0
            while True:  # and so does this part of a panel while the rows pass by
                length = min(most_k, runs.length - k0)
                for q in range(panels.shape[0]):
                    remaining = min(panel, out.columns - q * out.stride)
                    p = p0
                    while p < p1:
                        rows = tile_rows(p1 - p, most)
                        x = Segment(
                            a_p, p * a_stride + k0, a_stride, 1, length, runs.blocks, runs.stride,
                            b_p, (q * depth + k0) * panel, panel,
                        )  # fmt: skip
                        at = p * out_stride + out.offset + q * out.stride
                        to = Row(out_p, at, out_stride, remaining)
                        start = to if k0 else Row(bias_p, q * bias_stride, 0, panel)
                        product_tile(rows, (remaining + n - 1) // n, (x,), (start, to))
                        p += rows
                k0 += length
                if k0 >= runs.length:
                    break
            p0 = p1

    return kernel(run, f"product({form.name})")


class _Sum(NamedTuple):
    p: Any  # pointer
    offset: Any
    stride: Any
    is_first: Any  # block of rows: write rather than add


@register_jitable
def _add_row(p, at, z, is_first):
    n = lane_count(p)
    for j in range(len(z)):
        store(p, at + j * n, z[j] if is_first else load(p, at + j * n) + z[j])


def _start_sums(i, count, args):
    """Zeros; what they will be added to is far away, and the products take long enough to fetch
    it."""
    to = args[1]
    for j in range(0, count * lane_count(to.p), line(to.p)):
        prefetch(to.p, to.offset + i * to.stride + j)
    return init_zero(i, count, args)


def _add_sums(i, z, args):
    to = args[1]
    _add_row(to.p, to.offset + i * to.stride, z, to.is_first)


# Rows of b for `_accumulate`, copied to the scratch of a thread, and the sums over them.
# Whole rows at a time: their numbers are neighbours, and far from those of the next row.


def _vectors(arguments: str, call: str, **names):
    """A function for kernels that makes the call for the first ``count`` of the vectors."""
    body = "if {k} < count: " + call
    return register_jitable(
        statements(f"{arguments}, count", body, PANEL, lane_count=lane_count, **names)
    )


_add = register_jitable(tuple_function("a, b", "a[{k}] + b[{k}]", PANEL))
_store = _vectors("p, at, v", "store(p, at + {k} * lane_count(p), v[{k}])", store=store)
_zip = _vectors(
    "p, at, low, high",
    "zip_vectors(p, at + {k} * 2 * lane_count(p), low[{k}], high[{k}])",
    zip_vectors=zip_vectors,
)
_add_to = _vectors(
    "p, at, v, is_first",
    "add_row(p, at + {k} * lane_count(p), (v[{k}],), is_first)",
    add_row=_add_row,
)


@register_jitable
def _copy_block(rows, count, unit, vectors, block_p, panel):
    total = init_zero(0, vectors, (rows,))
    for p in range(count):
        if rows.columns >= vectors * lane_count(block_p):
            v = init_row(p, vectors, (rows,))
        else:
            v = init_columns(p, vectors, (rows,))
        _store(block_p, p * panel, v, vectors)
        total = _add(total, v)
    return total


@register_jitable
def _zip_block(rows, count, unit, vectors, block_p, panel):
    zero = init_zero(0, vectors, (rows,))
    total = zero
    for p in range(0, (count + unit - 1) // unit * unit, 2):
        low = init_row(p, vectors, (rows,)) if p < count else zero
        high = init_row(p + 1, vectors, (rows,)) if p + 1 < count else zero
        _zip(block_p, p * panel, low, high, vectors)
        total = _add(_add(total, low), high)
    return total


@cache
def _accumulate(form: Format):
    """A function for kernels: sums over rows of products of their numbers."""
    sum_tile, most = tile(form, _start_sums, _add_sums), form.tile_rows
    zipped, step, unit = form.step > 1, form.step, form.unit
    block_of = _zip_block if zipped else _copy_block
    block = BLOCK * step

    @register_jitable
    def accumulate(a, depth, b, out, sums, first, last, scratch):
        """``out[q, k] = sum over rows p of a[p, k] * b[p, panel q]``, and ``sums[q]`` of b alone.

        a [N, >= depth], or zipped (layouts.py), where rows of b are whole vectors; out
        [Q, depth, v W], sums [Q, v W]; scratch: the thread's own. Work is the list of all (q, k),
        of which [first, last) is done here; ``sums[q]`` goes with (q, 0). Rows are added in order,
        in blocks, so the result does not depend on how the list is divided.
        """
        a_p, b_p, out_p, sums_p = pointer(a), pointer(b.values), pointer(out), pointer(sums)
        block_p = at_address(scratch, b_p)
        n, panel = lane_count(out_p), out.shape[2]
        n_rows, a_stride, b_stride = b.values.shape[0], a.shape[1], b.values.shape[1]
        p0 = 0
        while p0 < n_rows:
            p1 = min(p0 + block, n_rows)
            work = first
            while work < last:
                q = work // depth
                k0, k1 = work - q * depth, min(depth, last - q * depth)
                remaining = min(panel, b.columns - q * b.stride)
                vectors = (remaining + n - 1) // n
                rows_of_b = Row(b_p, p0 * b_stride + b.offset + q * b.stride, b_stride, remaining)
                total = block_of(rows_of_b, p1 - p0, unit, vectors, block_p, panel)
                if k0 == 0:
                    _add_to(sums_p, q * panel, total, p0 == 0, vectors)
                k = k0
                while k < k1:
                    a_at, row_stride, k_stride = p0 * a_stride + k, 1, a_stride
                    if zipped:
                        a_at, row_stride, k_stride = (p0 // block * depth + k) * block, block, 1
                    a_t = Segment(a_p, a_at, row_stride, k_stride, p1 - p0, 1, 0, block_p, 0, panel)
                    rows = tile_rows(k1 - k, most)
                    to = _Sum(out_p, (q * depth + k) * panel, panel, p0 == 0)
                    sum_tile(rows, vectors, (a_t,), (Row(out_p, 0, 0, 0), to))
                    k += rows
                work += k1 - k0
            p0 = p1

    return accumulate


@register_jitable
def _segment_sum(ids, b, out, first, last):
    """``out[q, v] += b[p, panel q]`` for the rows p with ``ids[p] == v``, q in [first, last).

    ids [N]; out [Q, V, v W]. Rows are added in order.
    """
    b_p, out_p = pointer(b.values), pointer(out)
    n, panel, b_stride = lane_count(b_p), out.shape[2], b.values.shape[1]
    for q in range(first, last):
        for p in range(ids.shape[0]):
            to = (q * out.shape[1] + ids[p]) * panel
            at = p * b_stride + b.offset + q * b.stride
            for j in range(0, min(panel, b.columns - q * b.stride), n):
                store(out_p, to + j, load(out_p, to + j) + load(b_p, at + j))


@kernel
def sum_columns(a: F2, out: F1, first: I, last: I):
    """``out[j] = sum over rows p of a[p, j]`` in order, for the vectors j in [first, last).

    The number of columns is a multiple of the vector width.
    """
    a_p, out_p = pointer(a), pointer(out)
    n = lane_count(a_p)
    for j in range(first * n, last * n, n):
        total = zeros_like(a_p)
        for p in range(a.shape[0]):
            total = total + load(a_p, p * a.shape[1] + j)
        store(out_p, j, total)


@cache
def weight_gradient(form: Format):
    """A kernel for the gradient of a weight."""
    accumulate = _accumulate(form)

    def run(
        a: A2, depth: I, b: Products, sums: Sums, columns: I1, out: F2,
        first: I, last: I, scratch: I
    ):  # fmt: skip
        """`_accumulate`, and from there to ``out`` as `panels.unpack_gradient` does with
        ``columns``."""
        packed, totals = sums
        if b.values.shape[0] == 0:
            packed_p, totals_p, panel = pointer(packed), pointer(totals), packed.shape[2]
            for k in range(first * panel, last * panel):
                packed_p[k] = 0
            for q in range(first // depth, (last + depth - 1) // depth):
                for k in range(panel):
                    totals_p[q * panel + k] = 0
        accumulate(a, depth, b, packed, totals, first, last, scratch)
        unpack_gradient(packed, columns, out, first, last)

    return kernel(run, f"weight_gradient({form.name})")


@cache
def token_sums(form: Format):
    """A kernel that adds up the rows of each token."""

    def run(ids: I1, b: Products, out: F2, first: I, last: I):
        """``out[v] = sum of b[p] over the rows p with ids[p] == v``, in order, in the same columns,
        for the panels [first, last)."""
        b_p, out_p = pointer(b.values), pointer(out)
        n, b_stride, stride = lane_count(out_p), b.values.shape[1], out.shape[1]
        for q in range(first, last):
            at, size = b.offset + q * b.stride, min(b.stride, b.columns - q * b.stride)
            for v in range(out.shape[0]):
                for j in range(0, size, n):
                    store(out_p, v * stride + at + j, zeros_like(out_p))
            for p in range(ids.shape[0]):
                to = ids[p] * stride + at
                for j in range(0, size, n):
                    row = load(b_p, p * b_stride + at + j)
                    store(out_p, to + j, load(out_p, to + j) + row)

    return kernel(run, f"token_sums({form.name})")


@cache
def table_gradient(form: Format):
    """The same for a one-hot input."""

    def run(ids: I1, b: Products, sums: Sums, columns: I1, out: F2, first: I, last: I):
        """The input is given by its index; the panels [first, last)."""
        packed, totals = sums
        packed_p, totals_p = pointer(packed), pointer(totals)
        depth, panel, n = packed.shape[1], packed.shape[2], lane_count(packed_p)
        for k in range(first * depth * panel, last * depth * panel):
            packed_p[k] = 0
        _segment_sum(ids, b, packed, first, last)
        unpack_gradient(packed, columns, out, first * depth, last * depth)
        for q in range(first, last):  # one of the values is on, so the bias has the sum over them
            for j in range(0, panel, n):
                total = zeros_like(packed_p)
                for v in range(depth):
                    total = total + load(packed_p, (q * depth + v) * panel + j)
                store(totals_p, q * panel + j, total)

    return kernel(run, f"table_gradient({form.name})")


@kernel
def fill(bias: F2, width: I, out: Panels, first: I, last: I):
    """The columns of every panel of ``out`` from ``width`` on: those of ``bias`` [Q, panel]."""
    out_p, bias_p = pointer(out.values), pointer(bias)
    panel, stride = bias.shape[1], out.values.shape[1]
    for p in range(first, last):
        for q in range(bias.shape[0]):
            for k in range(width, panel):
                out_p[p * stride + out.offset + q * out.stride + k] = bias_p[q * panel + k]
