"""Matrix products over packed panels: rows times panels, and sums over the rows.

Serial kernels over a range of rows or of tiles, on the layouts of pack.py.
"""

from numba.extending import register_jitable

from .compiler import kernel
from .simd import lane_count, pointer, zeros_like
from .tile import (
    PANEL,
    begin_panel,
    begin_zero,
    finish_row,
    load_panel,
    store_panel,
    tile,
    tile_rows,
)

# Rows that `accumulate` takes at once: block x panel stays in the first-level cache.
BLOCK = 96


_product_tile = tile(begin_panel, finish_row)


@kernel
def product(a, depth, panels, bias, out, columns, first, last):
    """``out[p] = bias + a[p] @ panels`` for the rows p in [first, last).

    a [N, >= depth], panels [Q, depth, 4W], bias [Q, 4W], out [N, >= columns]: ``columns`` of
    the Q * 4W are written.
    """
    a_p, b_p, bias_p, out_p = pointer(a), pointer(panels), pointer(bias), pointer(out)
    panel, a_row, out_row = PANEL * lane_count(b_p), a.shape[1], out.shape[1]
    p0 = first
    while p0 < last:  # these rows stay in cache while the panels pass by
        p1 = min(p0 + BLOCK // 2, last)
        for q in range(panels.shape[0]):
            column = q * panel
            p = p0
            while p < p1:
                rows = tile_rows(p1 - p)
                x = (a_p, p * a_row, a_row, 1, depth, b_p, column * depth)
                to = (out_p, p * out_row + column, out_row, columns - column)
                _product_tile(rows, (x,), ((bias_p, column), to))
                p += rows
        p0 = p1


@register_jitable
def _add(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


@register_jitable
def _finish_sum(i, z, args):
    out, at, fresh = args[1]
    at += i * PANEL * lane_count(out)
    store_panel(out, at, z if fresh else _add(load_panel(out, at), z))


_sum_tile = tile(begin_zero, _finish_sum)


@kernel
def accumulate(a, depth, b, b_at, out, sums, scratch, first, last):
    """``out[q, k] = sum over rows p of a[p, k] * b[p, panel q]``, and ``sums[q]`` of b alone.

    a [N, >= depth], b [N, >= b_at + Q * 4W], out [Q, depth, 4W], sums [Q, 4W], scratch
    [BLOCK, 4W]; an empty ``sums`` is left alone. Work is the list of all (q, k), of which
    [first, last) is done here, and ``sums[q]`` by whoever has (q, 0). Rows are added in
    order, in blocks: the result does not depend on how the list is shared out.
    """
    a_p, b_p, out_p, sums_p = pointer(a), pointer(b), pointer(out), pointer(sums)
    block_p = pointer(scratch)
    panel = PANEL * lane_count(b_p)
    n_rows, a_row, b_row = a.shape[0], a.shape[1], b.shape[1]
    p0 = 0
    while p0 < n_rows:
        p1 = min(p0 + BLOCK, n_rows)
        work = first
        while work < last:
            q = work // depth
            k0, k1 = work - q * depth, min(depth, last - q * depth)
            z = zeros_like(b_p)
            total = (z, z, z, z)
            for p in range(p0, p1):
                row = load_panel(b_p, p * b_row + b_at + q * panel)
                store_panel(block_p, (p - p0) * panel, row)
                total = _add(total, row)
            if k0 == 0 and sums.shape[0] > 0:
                _finish_sum(0, total, (0, (sums_p, q * panel, p0 == 0)))
            k = k0
            while k < k1:
                a_t = (a_p, p0 * a_row + k, 1, a_row, p1 - p0, block_p, 0)
                rows = tile_rows(k1 - k)
                to = (out_p, (q * depth + k) * panel, p0 == 0)
                _sum_tile(rows, (a_t,), ((b_p,), to))
                k += rows
            work += k1 - k0
        p0 = p1


@kernel
def scatter(ids, b, b_at, out, first, last):
    """``out[q, v] += b[p, panel q]`` for the rows p with ``ids[p] == v``, q in [first, last).

    ids [N] int64, b [N, >= b_at + Q * 4W], out [Q, V, 4W]. Rows are added in order.
    """
    b_p, out_p = pointer(b), pointer(out)
    panel = PANEL * lane_count(b_p)
    for q in range(first, last):
        for p in range(ids.shape[0]):
            to = (q * out.shape[1] + ids[p]) * panel
            row = load_panel(b_p, p * b.shape[1] + b_at + q * panel)
            store_panel(out_p, to, _add(load_panel(out_p, to), row))
