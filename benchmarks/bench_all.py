"""Runs all of fastrnn.bench.cases in pytest-benchmark."""

import pytest

from fastrnn.bench.cases import CASES


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: f"{entry.group}: {entry.name}")
def test_case(compare, benchmark, entry):
    benchmark.group = entry.group
    benchmark.extra_info["name"] = entry.name
    compare(entry.make())
