"""Matrix products over packed panels: rows times panels, and sums over the rows.

Serial kernels over a range of rows or of tiles, on the layouts of pack.py.
"""

from numba.extending import register_jitable

from .compiler import kernel
from .simd import lane_count, load, pointer, store, store_first, zeros_like
from .tile import PANEL, tile, tile_rows

# Rows that `accumulate` takes at once: block x panel stays in the first-level cache.
BLOCK = 96


def _begin_bias(i, args):
    bias, at, n = args[0], args[1], args[2]
    return (
        load(bias, at),
        load(bias, at + n),
        load(bias, at + 2 * n),
        load(bias, at + 3 * n),
    )


def _finish_rows(i, z, args):
    _, _, n, out, at, out_row, columns = args
    for j in range(PANEL):
        if j * n < columns:
            store_first(out, at + i * out_row + j * n, z[j], columns - j * n)


_product_tile = tile(_begin_bias, _finish_rows)


@kernel
def product(a, a_at, depth, panels, bias, out, out_at, columns, first, last):
    """``out[p, out_at:] = bias + a[p, a_at:] @ panels`` for the rows p in [first, last).

    a [N, >= a_at + depth], panels [Q, depth, 4W], bias [Q, 4W],
    out [N, >= out_at + columns]: ``columns`` of the Q * 4W are written.
    """
    a_p, b_p, bias_p, out_p = pointer(a), pointer(panels), pointer(bias), pointer(out)
    n = lane_count(b_p)
    a_row, out_row = a.shape[1], out.shape[1]
    p0 = first
    while p0 < last:  # these rows stay in cache while the panels pass by
        p1 = min(p0 + BLOCK // 2, last)
        for q in range(panels.shape[0]):
            column = q * PANEL * n
            p = p0
            while p < p1:
                rows = tile_rows(p1 - p)
                x = (a_p, p * a_row + a_at, a_row, 1, depth, b_p, column * depth)
                args = (bias_p, column, n, out_p, p * out_row + out_at + column, out_row)
                _product_tile(rows, (x,), args + (columns - column,))
                p += rows
        p0 = p1


def _begin_zero(i, args):
    z = zeros_like(args[0])
    return z, z, z, z


@register_jitable
def _finish_sum(i, z, args):
    out, at, n, fresh = args
    for j in range(PANEL):
        to = at + (i * PANEL + j) * n
        store(out, to, z[j] if fresh else load(out, to) + z[j])


_sum_tile = tile(_begin_zero, _finish_sum)


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
    n = lane_count(b_p)
    panel = PANEL * n
    n_rows, a_row, b_row = a.shape[0], a.shape[1], b.shape[1]
    p0 = 0
    while p0 < n_rows:
        p1 = min(p0 + BLOCK, n_rows)
        work = first
        while work < last:
            q = work // depth
            k0, k1 = work - q * depth, min(depth, last - q * depth)
            s0 = zeros_like(b_p)
            s1, s2, s3 = s0, s0, s0
            for p in range(p0, p1):
                at, to = p * b_row + b_at + q * panel, (p - p0) * panel
                v0, v1, v2, v3 = (
                    load(b_p, at),
                    load(b_p, at + n),
                    load(b_p, at + 2 * n),
                    load(b_p, at + 3 * n),
                )
                store(block_p, to, v0)
                store(block_p, to + n, v1)
                store(block_p, to + 2 * n, v2)
                store(block_p, to + 3 * n, v3)
                s0, s1, s2, s3 = s0 + v0, s1 + v1, s2 + v2, s3 + v3
            if k0 == 0 and sums.shape[0] > 0:
                _finish_sum(0, (s0, s1, s2, s3), (sums_p, q * panel, n, p0 == 0))
            k = k0
            while k < k1:
                rows = tile_rows(k1 - k)
                a_t = (a_p, p0 * a_row + k, 1, a_row, p1 - p0, block_p, 0)
                _sum_tile(rows, (a_t,), (out_p, (q * depth + k) * panel, n, p0 == 0))
                k += rows
            work += k1 - k0
        p0 = p1


@kernel
def scatter(ids, b, b_at, out, first, last):
    """``out[q, v] += b[p, panel q]`` for the rows p with ``ids[p] == v``, q in [first, last).

    ids [N] int64, b [N, >= b_at + Q * 4W], out [Q, V, 4W]. Rows are added in order.
    """
    b_p, out_p = pointer(b), pointer(out)
    n = lane_count(b_p)
    panel = PANEL * n
    for q in range(first, last):
        for p in range(ids.shape[0]):
            at, to = p * b.shape[1] + b_at + q * panel, (q * out.shape[1] + ids[p]) * panel
            for j in range(PANEL):
                store(out_p, to + j * n, load(out_p, to + j * n) + load(b_p, at + j * n))
