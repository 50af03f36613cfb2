"""Matrix products over packed panels: rows times panels, and sums over the rows.

Serial kernels over a range of rows or of tiles, on the layouts of pack.py.
"""

from numba.extending import register_jitable

from .compiler import kernel
from .simd import lane_count, load, load_first, pointer, store, zeros_like
from .tile import (
    begin_panel,
    begin_zero,
    finish_row,
    tile,
    tile_rows,
)

# Rows that `accumulate` takes at once: block x panel stays in the first-level cache.
BLOCK = 256


_product_tile = tile(begin_panel, finish_row)


@kernel
def product(
    a, blocks, length, block_stride, panels, bias, out, out_at, out_panel, columns, first, last
):
    """``out[p] = bias + a[p] @ panels`` for the rows p in [first, last).

    a [N, ...], of whose rows ``blocks`` runs of ``length`` numbers count, ``block_stride``
    apart; panels [Q, blocks * length, v W], bias [Q, >= v W]. Panel q goes to the columns from
    ``out_at + q * out_panel`` of out [N, ...]; no more than ``columns`` are written in all.
    """
    a_p, b_p, bias_p, out_p = pointer(a), pointer(panels), pointer(bias), pointer(out)
    n, depth, panel = lane_count(b_p), panels.shape[1], panels.shape[2]
    a_row, out_row, bias_row = a.shape[1], out.shape[1], bias.shape[1]
    p0 = first
    while p0 < last:  # these rows stay in cache while the panels pass by
        p1 = min(p0 + BLOCK // 2, last)
        for q in range(panels.shape[0]):
            left = min(panel, columns - q * out_panel)
            p = p0
            while p < p1:
                rows = tile_rows(p1 - p)
                x = (
                    a_p, p * a_row, a_row, 1, length, blocks, block_stride,
                    b_p, q * depth * panel, panel,
                )  # fmt: skip
                to = (out_p, p * out_row + out_at + q * out_panel, out_row, left)
                _product_tile(rows, (left + n - 1) // n, (x,), ((bias_p, q * bias_row), to))
                p += rows
        p0 = p1


@register_jitable
def _add_row(p, at, z, fresh):
    n = lane_count(p)
    for j in range(len(z)):
        store(p, at + j * n, z[j] if fresh else load(p, at + j * n) + z[j])


@register_jitable
def _finish_sum(i, z, args):
    out, at, row, fresh = args[1]
    _add_row(out, at + i * row, z, fresh)


_sum_tile = tile(begin_zero, _finish_sum)


@kernel
def accumulate(a, depth, b, b_at, b_panel, columns, out, sums, scratch, first, last):
    """``out[q, k] = sum over rows p of a[p, k] * b[p, panel q]``, and ``sums[q]`` of b alone.

    a [N, >= depth]; panel q of b [N, ...] begins at column ``b_at + q * b_panel`` and no more
    than ``columns`` of b are read in all; out [Q, depth, v W], sums [Q, v W], scratch
    [BLOCK, v W]. Work is the list of all (q, k), of which [first, last) is done here, and
    ``sums[q]`` by whoever has (q, 0). Rows are added in order, in blocks: the result does not
    depend on how the list is shared out.
    """
    a_p, b_p, out_p, sums_p = pointer(a), pointer(b), pointer(out), pointer(sums)
    block_p = pointer(scratch)
    n, panel = lane_count(b_p), out.shape[2]
    zero = zeros_like(b_p)
    n_rows, a_row, b_row = a.shape[0], a.shape[1], b.shape[1]
    p0 = 0
    while p0 < n_rows:
        p1 = min(p0 + BLOCK, n_rows)
        work = first
        while work < last:
            q = work // depth
            k0, k1 = work - q * depth, min(depth, last - q * depth)
            left = min(panel, columns - q * b_panel)
            vectors = (left + n - 1) // n
            for j in range(vectors):
                total = zero
                for p in range(p0, p1):
                    at = p * b_row + b_at + q * b_panel + j * n
                    row = load_first(b_p, at, left - j * n)
                    store(block_p, (p - p0) * panel + j * n, row)
                    total = total + row
                if k0 == 0:
                    _add_row(sums_p, q * panel + j * n, (total,), p0 == 0)
            k = k0
            while k < k1:
                a_t = (a_p, p0 * a_row + k, 1, a_row, p1 - p0, 1, 0, block_p, 0, panel)
                rows = tile_rows(k1 - k)
                to = (out_p, (q * depth + k) * panel, panel, p0 == 0)
                _sum_tile(rows, vectors, (a_t,), ((b_p,), to))
                k += rows
            work += k1 - k0
        p0 = p1


@kernel
def scatter(ids, b, b_at, b_panel, columns, out, first, last):
    """``out[q, v] += b[p, panel q]`` for the rows p with ``ids[p] == v``, q in [first, last).

    ids [N] int64, b and out [Q, V, v W] as in `accumulate`. Rows are added in order.
    """
    b_p, out_p = pointer(b), pointer(out)
    n, panel = lane_count(b_p), out.shape[2]
    for q in range(first, last):
        for p in range(ids.shape[0]):
            to = (q * out.shape[1] + ids[p]) * panel
            at = p * b.shape[1] + b_at + q * b_panel
            for j in range(0, min(panel, columns - q * b_panel), n):
                store(out_p, to + j, load(out_p, to + j) + load(b_p, at + j))
