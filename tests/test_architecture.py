"""Imports that import-linter cannot see: those of the Cython extensions."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src_cython"


@pytest.mark.skipif(not SOURCES.exists(), reason="the sources are not here")
def test_the_extensions_import_the_runtime_only():
    for source in SOURCES.glob("*.pyx"):
        imports = re.findall(
            r"^(?:from|c?import) (fastrnn[\w.]*)", source.read_text(), re.MULTILINE
        )
        assert all(name.startswith("fastrnn.runtime") for name in imports), (source, imports)
