"""Rules of the house that no linter checks."""

import ast
import re
from pathlib import Path

import pytest

import fastrnn

SOURCES = Path(__file__).parents[1] / "src_cython"
PACKAGE = Path(fastrnn.__file__).parent
MOST_PARAMETERS = 10


@pytest.mark.skipif(not SOURCES.exists(), reason="the sources are not here")
def test_the_extensions_import_the_runtime_only():
    for source in SOURCES.glob("*.pyx"):
        imports = re.findall(
            r"^(?:from|c?import) (fastrnn[\w.]*)", source.read_text(), re.MULTILINE
        )
        allowed = ("fastrnn.runtime", "fastrnn._native", "fastrnn.checks")
        assert all(name.startswith(allowed) for name in imports), (source, imports)


def test_no_function_has_many_parameters():
    """Records instead. Equations of cells take a number each; keyword options of constructors (as
    in PyTorch and scikit-learn) and of commands are one each."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("cells", "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = [p.arg for p in (*a.posonlyargs, *a.args) if p.arg not in ("self", "cls")]
                if node.name != "__init__":
                    names += [p.arg for p in a.kwonlyargs]
                assert len(names) <= MOST_PARAMETERS, (path, node.name, names)
