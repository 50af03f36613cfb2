"""Gather, scatter and padding."""

import pytest

import cases


@pytest.mark.benchmark(group="data")
@pytest.mark.parametrize("name", ["gather", "sparse gradient", "padding lists", "padding arrays"])
def test_data(compare, name):
    case = {
        "gather": cases.gather,
        "sparse gradient": cases.scatter_sparse,
        "padding lists": lambda: cases.padding("lists"),
        "padding arrays": lambda: cases.padding("arrays"),
    }[name]
    compare(case())
