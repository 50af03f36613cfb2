"""What the documentation says can be typed in."""

import doctest
import re
from pathlib import Path

import pytest

import fastrnn
import fastrnn.conversion
import fastrnn.layers.rnn

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys, number):
    if number == 4:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("a rose is a rose is a rose. " * 400)
    Path("train.tsv").write_text("Selegiline\tB-Chemical\nhelps\tO\n.\tO\n\n" * 40)
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[number]
    for large, small in (("steps=600", "steps=2"), ("hidden_size=512", "hidden_size=16"),
                         ('"glove"', "None")):  # fmt: skip
        code = code.replace(large, small)
    names: dict = {"fastrnn": fastrnn}
    exec(code, names)
    if number == 0:
        assert names["grads"]["weight_hh_l1_reverse"].shape == (512, 128)
    elif number == 1:
        assert names["projected"].proj_size == 32
    elif number == 3:
        assert [len(t) for t in names["tags"]] == [4] and Path("tagger/config.json").exists()
    elif number == 4:
        assert capsys.readouterr().out == "replaced 1\n"
    else:
        assert len(capsys.readouterr().out) > 200


def test_the_model_of_the_guide_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guide = (README.parent / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["trainer"].best > 0.85 and names["accuracy"]() == names["trainer"].best


@pytest.mark.parametrize("module", [fastrnn, fastrnn.layers.rnn, fastrnn.conversion])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
