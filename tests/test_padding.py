"""`pad_sequences` against a few lines of plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrnn import pad_sequences

sequences_of_ints = st.lists(st.lists(st.integers(-5, 1000), max_size=9), max_size=8)


def plain(sequences, max_len, padding, truncating, value):
    steps = max(map(len, sequences), default=0) if max_len is None else max_len
    rows = []
    for s in sequences:
        cut = (s[-steps:] if steps else []) if truncating == "pre" else s[:steps]
        fill = [value] * (steps - len(cut))
        rows.append(fill + cut if padding == "pre" else cut + fill)
    lengths = [min(len(s), steps) for s in sequences]
    return np.array(rows, np.int64).reshape(len(sequences), steps), np.array(lengths, np.int64)


@given(
    sequences=sequences_of_ints,
    max_len=st.none() | st.integers(0, 12),
    padding=st.sampled_from(["post", "pre"]),
    truncating=st.sampled_from(["post", "pre"]),
    value=st.integers(-3, 3),
    batch_first=st.booleans(),
)
def test_all_forms(sequences, max_len, padding, truncating, value, batch_first):
    options = {"max_len": max_len, "padding": padding, "truncating": truncating, "value": value}
    wanted, lengths = plain(sequences, **options)
    if not batch_first:
        wanted = wanted.T
    offsets = np.cumsum([0] + [len(s) for s in sequences])
    flat = np.array([i for s in sequences for i in s], np.int64)
    forms = [
        sequences,
        [np.array(s, np.int64) for s in sequences],
        [np.array(s, np.int32) for s in sequences],
        [tuple(s) for s in sequences],
        (flat, offsets),
        (flat.astype(np.int32), offsets.tolist()),
    ]
    for form in forms:
        ids, got = pad_sequences(form, batch_first=batch_first, **options)
        assert np.array_equal(ids, wanted) and ids.shape == wanted.shape
        assert np.array_equal(got, lengths) and got.dtype == np.int64
        assert ids.flags.c_contiguous


def test_types():
    assert pad_sequences([[1], [2, 3]])[0].dtype == np.int64
    assert pad_sequences([np.array([1], np.int32), np.array([2], np.int32)])[0].dtype == np.int32
    assert pad_sequences([np.array([1], np.int32), np.array([2], np.int64)])[0].dtype == np.int64
    ids, _ = pad_sequences([[np.int64(4), 5], np.array([], float)])
    assert ids.tolist() == [[4, 0], [5, 0]]
    assert pad_sequences((np.arange(10), [2, 2, 5]))[1].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("sequences", "options", "error", "message"),
    [
        ([[1], [2.5]], {}, TypeError, r"sequences\[1\]\[0\] must be an int, got float"),
        ([[1, True]], {}, TypeError, r"sequences\[0\]\[1\] must be an int, got bool"),
        ([[1], 2], {}, TypeError, r"sequences\[1\] must be a list or an array, got int"),
        (["ab"], {}, TypeError, r"sequences\[0\] must be a list or an array, got str"),
        (3, {}, TypeError, "sequences must be lists of ints"),
        ([np.zeros(2)], {}, TypeError, r"sequences\[0\] must be integers, got dtype float64"),
        ([np.zeros((1, 2), int)], {}, ValueError, r"sequences\[0\] must have one dimension"),
        ((np.arange(3), [0, 4]), {}, ValueError, r"must ascend within \[0, 3\]"),
        ((np.arange(3), [2, 1]), {}, ValueError, r"must ascend within \[0, 3\]"),
        ((np.arange(3), [-1, 1]), {}, ValueError, r"must ascend within \[0, 3\]"),
        ([[1]], {"padding": "left"}, ValueError, "padding must be one of post, pre; got 'left'"),
        ([[1]], {"truncating": 0}, ValueError, "truncating must be one of post, pre; got 0"),
        ([[1]], {"max_len": -1}, ValueError, "max_len must be at least 0, got -1"),
        ([[1]], {"max_len": 1.5}, TypeError, "max_len must be an int, got float"),
        ([[1]], {"value": None}, TypeError, "value must be an int, got NoneType"),
        ([np.array([1], np.int32)], {"value": 2**40}, ValueError, "value must fit int32"),
    ],
)
def test_refused(sequences, options, error, message):
    with pytest.raises(error, match=message):
        pad_sequences(sequences, **options)


def test_an_int_too_large_is_refused():
    with pytest.raises(OverflowError):
        pad_sequences([[2**70]])
