"""What a user's type checkers see: every Python example of the documentation, in strict mode."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A file for each page, whose blocks follow each other; those of serving.md are programs."""
    folder = tmp_path_factory.mktemp("examples")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
        # Dask and Ray are not typed for strict checks.
        blocks = [code for code in blocks if not re.search("^import (dask|ray)", code, re.M)]
        for number, code in enumerate(blocks if path.stem == "serving" else ["\n".join(blocks)]):
            (folder / f"{path.stem}_{number}.py").write_text(code)
    assert len(list(folder.iterdir())) >= 9
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("checker, options", [
    ("mypy", ["--strict", "--ignore-missing-imports", "--cache-dir", "cache"]),
    ("pyright", ["--pythonpath", sys.executable]),
])  # fmt: skip
def test_examples_pass_strict_checks(examples, checker, options):
    pytest.importorskip(checker, reason=f"{checker} is not installed")
    version = [sys.executable, "-m", checker, "--version"]
    if subprocess.run(version, capture_output=True, cwd=examples).returncode:
        pytest.skip(f"{checker} cannot be started")  # pyright downloads a part of itself
    files = sorted(path.name for path in examples.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-m", checker, *options, *files],
        cwd=examples, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wrong_type_is_seen(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "wrong.py").write_text(
        "import fastrnn\n"
        "lstm = fastrnn.LSTM(2, 3, dtype='float16')\n"
        "y, (h, c) = lstm([[[1.0, 2.0]]])\n"
        "y.nothing\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    lines = re.findall(r"wrong\.py:(\d+): error: .*(dtype|nothing)", done.stdout)
    assert lines == [("2", "dtype"), ("4", "nothing")], done.stdout
