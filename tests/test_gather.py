"""Gather and scatter: numbers, the edges of the table, and that nothing is half written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastrnn import gather_rows, scatter_add_rows
from fastrnn._gather import sum_rows


@pytest.mark.parametrize("ids_type", [np.int32, np.int64, np.uint8, list])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gather(rng, dtype, ids_type):
    table = rng.standard_normal((7, 5)).astype(dtype)
    ids = [6, 0, 3, 3]
    got = gather_rows(table, ids if ids_type is list else np.array(ids, ids_type))
    assert got.dtype == dtype and np.array_equal(got, table[ids])
    out = np.empty((4, 5), dtype)
    assert gather_rows(np.asfortranarray(table), ids, out) is out
    assert np.array_equal(out, table[ids])
    assert gather_rows(table, []).shape == (0, 5)
    assert gather_rows(np.empty((3, 0), dtype), [1, 2]).shape == (2, 0)


@pytest.mark.parametrize("bad", [-1, 7, 8, 2**31, -(2**63)])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_an_id_outside_the_table_writes_nothing(rng, bad, position):
    table = rng.standard_normal((7, 3))
    ids = np.array([0, 6, 1, 5, 6])  # 0 and V - 1 are inside
    gather_rows(table, ids)
    ids[position] = bad
    message = rf"id {bad} at position {position} is not in \[0, 7\)"
    out = np.full((5, 3), 9.0)
    with pytest.raises(IndexError, match=message):
        gather_rows(table, ids, out)
    with pytest.raises(IndexError, match=message):
        scatter_add_rows(np.ones((5, 3)), ids, out=table)
    with pytest.raises(IndexError, match=message):
        scatter_add_rows(np.ones((5, 3)), ids, num_rows=7)
    assert (out == 9).all()
    assert np.array_equal(table, np.random.default_rng(0).standard_normal((7, 3)))


@given(
    ids=hnp.arrays(st.sampled_from([np.int32, np.int64]), st.integers(0, 30),
                   elements=st.integers(0, 8)),
    width=st.integers(0, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_scatter_dense_and_sparse(ids, width, dtype):
    grads = np.random.default_rng(0).standard_normal((len(ids), width)).astype(dtype)
    dense = np.ones((9, width), dtype)
    assert scatter_add_rows(grads, ids, out=dense) is dense
    wanted = np.ones((9, width), dtype)
    np.add.at(wanted, ids, grads)
    assert np.array_equal(dense, wanted)  # the same order, so the same bits
    rows, sums = scatter_add_rows(grads, ids, num_rows=9)
    assert np.array_equal(rows, np.unique(ids)) and rows.dtype == np.int64
    wanted = np.zeros((9, width), dtype)
    np.add.at(wanted, ids, grads)
    assert sums.dtype == dtype and np.array_equal(sums, wanted[rows])


def test_refused():
    table, grads = np.zeros((4, 2)), np.zeros((3, 2))
    with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
        gather_rows(table, [1.0])
    with pytest.raises(ValueError, match=r"ids must have one dimension, got shape \(1, 1\)"):
        gather_rows(table, [[1]])
    with pytest.raises(ValueError, match="table must be an array of two dimensions"):
        gather_rows([1.0], [0])
    with pytest.raises(TypeError, match="table must be of float32 or float64, got dtype int64"):
        gather_rows(np.zeros((2, 2), int), [0])
    with pytest.raises(ValueError, match=r"out must have shape \(1, 2\), got \(2, 2\)"):
        gather_rows(table, [0], np.zeros((2, 2)))
    with pytest.raises(TypeError, match="out must be of float64, got dtype float32"):
        gather_rows(table, [0], np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="out must be C-contiguous and writeable"):
        gather_rows(table, [0, 1], np.zeros((2, 2), order="F"))
    with pytest.raises(ValueError, match="ids must have 3 entries like grads, got 2"):
        scatter_add_rows(grads, [0, 1], out=table)
    with pytest.raises(ValueError, match="give either out"):
        scatter_add_rows(grads, [0, 1, 2])
    with pytest.raises(ValueError, match="give either out"):
        scatter_add_rows(grads, [0, 1, 2], out=table, num_rows=4)
    for bad, error in ((2.5, TypeError), (True, TypeError), ("3", TypeError), (-1, ValueError)):
        with pytest.raises(error, match="num_rows must be"):
            scatter_add_rows(grads[:0], np.empty(0, int), num_rows=bad)


@pytest.mark.parametrize("limit", [50, 2**62])
def test_sparse_sums_of_some_columns(rng, limit):
    """Negative ids take no part; also where an id and a position do not fit one integer."""
    grads, ids = rng.standard_normal((200, 7)), rng.integers(-3, 50, 200)
    rows, sums = sum_rows(grads, ids, 4, limit)
    wanted = np.zeros((50, 4))
    for row, g in zip(ids, grads, strict=True):
        if row >= 0:
            wanted[row] += g[:4]
    assert np.array_equal(rows, np.unique(ids[ids >= 0]))
    assert np.array_equal(sums, wanted[rows])


def test_out_is_not_the_table():
    table = np.arange(12.0).reshape(4, 3)
    kept = table.copy()
    with pytest.raises(ValueError, match="out must not share memory with table"):
        gather_rows(table, [3, 2, 1, 0], table)
    assert np.array_equal(table, kept)
