"""What the documentation says can be typed in: every block of code is run."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from helpers import HAS_TORCH, mpiexec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# So that a block is quick: what it says, and what is run.
SMALLER = {
    "steps=600": "steps=2", "hidden_size=512": "hidden_size=16", '"glove"': "None",
}  # fmt: skip
QUICK = {
    "train lm": ["--steps", "2", "--epochs", "0", "--hidden", "8", "--embed", "8", "--batch", "4",
                 "--bptt", "9"],
    "train tagger": ["--epochs", "1", "--hidden", "4"],
    "demo": ["--steps", "2"],
    "sample": ["--length", "3"],
}  # fmt: skip
# Lines of these programs are run by others: CI, or someone who has the corpora.
ELSEWHERE = ("pip", "pytest", "mkdocs")
TOKENS = ["Selegiline/B-Chemical helps/O ./O", "Rats/O had/O hypotension/B-Disease in/O 3/O"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that pages take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.txt", "valid.txt"):
        Path(name).write_text("The rose is a rose is a rose. The end is a rose.\n" * 60)
    rows = [[pair.split("/") for pair in line.split()] for line in TOKENS] * 12
    text = "\n".join("".join(f"{a}\t{b}\n" for a, b in row) for row in rows)
    for name in ("train.tsv", "devel.tsv", "test.tsv"):
        Path(name).write_text(text)
    Path("features.conll").write_text(re.sub(r"\t", "\tNN\tno\t", text))
    Path("notes.txt").write_text("Selegiline helps.\nRats had hypotension.\n")
    Path("sentences.txt").write_text("Selegiline helps .\n")
    words = {pair[0].lower() for row in rows for pair in row} | {"induced"}
    numbers = " ".join(["0.5", "-0.25", "0.125", "1"])
    Path("vectors.txt").write_text("".join(f"{word} {numbers}\n" for word in sorted(words)))
    return tmp_path


# Ray warns of its own settings, and leaves its processes to the end of this one.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python(page, files, capsys):
    code = "\n".join(blocks(page, "python"))
    for said, run in SMALLER.items():
        code = code.replace(said, run)
    if re.search(r"\btorch\b(?!\.nn`)", code) and not HAS_TORCH:
        pytest.skip("PyTorch is not installed")
    for module in ("onnx", "tokenizers", "dask", "ray"):
        if re.search(rf"\b{module}\b", code):
            pytest.importorskip(module, reason=f"{module} is not installed")
    if page.stem == "serving":  # its first block loads this one
        X, y = [["Selegiline", "helps"]] * 4, [["B-Chemical", "O"]] * 4
        fastrnn.models.Tagger(word_dim=4, hidden_size=4, epochs=1).fit(X, y).save("tagger")
        fastrnn.models.LanguageModel(
            __import__("fastrnn.data.text").data.text.Vocabulary.of("abc"), hidden_size=4
        ).save("run")
    exec(compile(code, page.name, "exec"), {"fastrnn": fastrnn, "__name__": "page"})
    printed = capsys.readouterr().out
    for line in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert line in printed


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh")], ids=lambda p: p.stem)
def test_commands(page, files):
    pytest.importorskip("typer", reason="the extra [cli] is not installed")
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            run(shlex.split(line))


def run(words: list[str]) -> None:
    """One line of a page, with little to do; a measurement only shows its options."""
    if words[0] in ELSEWHERE:
        return
    processes: list[str] = []
    if words[0] == "mpiexec":
        processes = [*mpiexec(), *words[1:3]] if mpiexec() else []
        words = words[3:]
    if words[0] == "python":
        if not HAS_TORCH:  # the rival of most of them
            return
        name = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        words = [sys.executable, str(ROOT / name), "--help"]
    else:
        assert words[0] == "fastrnn", words
        for name, options in QUICK.items():
            if " ".join(words[1:]).startswith(name):
                given = [*options]
                if "--tied" not in words and "--from" in words:
                    given = options[:4]  # the sizes are those of the run
                words = [*words, *given]
        words = [*processes, sys.executable, "-m", "fastrnn.cli", *words[1:]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def test_every_block_says_what_it_is():
    for page in PAGES:
        opening = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
        plain = opening.count("")
        allowed = {"README": 2, "memory": 2, "convergence": 1, "tagging": 1}.get(page.stem, 0)
        assert plain <= allowed and set(opening) <= {"", "python", "sh"}, page


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")]
    skipped = (
        "cuda",
        "__main__",
        "native",
        "fastrnn.bench",
        "fastrnn.cli",
        "torch",
        "keras",
        "onnx",
    )
    return ["fastrnn", *(name for name in found if not any(s in name for s in skipped))]


def test_the_examples_of_docstrings(files):
    attempted = {}
    for name in modules():
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        attempted[name] = result.attempted
    assert sum(n > 0 for n in attempted.values()) >= 15, attempted


def test_the_model_of_the_guide_learns(files):
    (code,) = blocks(ROOT / "docs" / "models.md", "python")
    names: dict = {}
    exec(code, names)
    assert names["trainer"].best > 0.85 and names["accuracy"]() == names["trainer"].best


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) < 130


def test_generated_tables_are_those_of_the_measurements():
    from fastrnn.bench import report

    data = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    rows = [
        {"group": b["group"], **b["extra_info"], "ours": b["stats"]["median"]}
        for b in data["benchmarks"]
    ]
    assert report.short(rows) in (ROOT / "README.md").read_text()
