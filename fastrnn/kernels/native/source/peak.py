"""What the machine can do at most: kernels of the benchmarks."""

from fastrnn.cells.activations import fma
from fastrnn.kernels.signature import F1, F2, I1, I

from .compiler import kernel
from .simd import lane_count, load, pointer, store


@kernel
def multiply_adds(out: F1, count: I):
    """Twelve independent chains of multiply-adds, nothing else; out holds two vectors."""
    p = pointer(out)
    n = lane_count(p)
    m, x = load(p, 0), load(p, n)
    a, b, c, d, e, f, g, h, i, j, k, o = (x, x, x, x, x, x, x, x, x, x, x, x)
    for _ in range(count):
        a, b, c, d = fma(a, m, x), fma(b, m, x), fma(c, m, x), fma(d, m, x)
        e, f, g, h = fma(e, m, x), fma(f, m, x), fma(g, m, x), fma(h, m, x)
        i, j, k, o = fma(i, m, x), fma(j, m, x), fma(k, m, x), fma(o, m, x)
    store(p, n, a + b + c + d + e + f + g + h + i + j + k + o)


@kernel
def read_rows(table: F2, ids: I1, out: F1, first: I, last: I):
    """Only read the rows: a lower bound on the time of a gather; out has a vector per row."""
    table_p = pointer(table)
    n, size = lane_count(table_p), table.shape[1]
    total = load(table_p, 0)
    for i in range(first, last):
        for k in range(0, size - n + 1, n):
            total = total + load(table_p, ids[i] * size + k)
    store(pointer(out), first * n, total)
