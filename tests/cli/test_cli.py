"""The command line, run for real in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest

from fastrnn.checkpoint import load_arrays, load_json
from fastrnn.plots import read_history
from helpers import fastrnn

pytest.importorskip("typer", reason="the extra [cli] is not installed")

TEXT = "pack my box with five dozen liquor jugs. how vexingly quick daft zebras jump! " * 80
SMALL = ["--embed", "8", "--hidden", "24", "--batch", "8", "--bptt", "20", "--eval-every", "20"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT[:3000]), ("valid.txt", TEXT[:2000])):
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    said = fastrnn(
        "train", "lm", texts / "a.txt", texts / "b.txt", "--valid", texts / "valid.txt",
        "--out", out, "--steps", 60, "--threads", 2, *SMALL,
    )  # fmt: skip
    assert f"{len(TEXT) + 3000:,} characters" in said and "2 threads" in said
    assert "bits per character" in said and str(out) in said
    return out


def test_train_writes_the_run(run):
    assert {p.name for p in run.iterdir()} == {
        "options.json", "config.json", "history.jsonl", "checkpoint.safetensors",
        "weights.safetensors", ".lock",
    }  # fmt: skip
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    for line in lines:
        assert line["loss"] > 0 and line["grad_norm"] > 0 and line["seconds"] > 0
    evaluated = [line["step"] for line in lines if "valid_bpc" in line]
    assert evaluated == [20, 40, 60] and lines[-1]["valid_bpc"] < lines[19]["valid_bpc"]


def test_an_existing_run_is_not_overwritten_and_can_go_on(run, texts, tmp_path):
    again = ["train", "lm", texts / "a.txt", texts / "b.txt", "--valid", texts / "valid.txt",
             "--out", run, "--steps", 80, *SMALL]  # fmt: skip
    assert "holds a run already: add --resume" in fastrnn(*again, code=1)
    assert "--seed was 0" in fastrnn(*again, "--resume", "--seed", 1, code=1)
    fastrnn(*again, "--resume")
    whole = tmp_path / "whole"
    again[again.index(run)] = whole
    fastrnn(*again)
    (a, notes_a), (b, notes_b) = (load_arrays(r / "checkpoint.safetensors") for r in (run, whole))
    assert notes_a["step"] == notes_b["step"] == 80
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert (run / "history.jsonl").read_text().count("\n") == 80


def test_ctrl_c_saves_and_says_how_to_go_on(texts, tmp_path):
    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-m", "fastrnn.cli", "train", "lm", texts / "a.txt", "--out", out,
         "--steps", "100000", *SMALL], stdout=subprocess.PIPE, text=True, cwd=os.sep,
    )  # fmt: skip
    history = out / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (history.exists() and history.stat().st_size):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert (
        child.returncode == 130 and "stopped at step" in said and "checkpoint.safetensors" in said
    )
    notes = load_arrays(out / "checkpoint.safetensors")[1]
    assert notes["step"] == history.read_text().count("\n") > 0


def test_sample(run):
    arguments = ["sample", run, "--length", 50, "--prime", "how ", "--seed", 1]
    said = fastrnn(*arguments)
    assert said.startswith("how ") and len(said.rstrip("\n")) >= 40
    assert said == fastrnn(*arguments, "--threads", 1)


def test_precision(run, texts, tmp_path):
    arguments = ["sample", run, "--length", 50, "--prime", "how ", "--seed", 1]
    said = {p: fastrnn(*arguments, "--precision", p) for p in ("float32", "bf16", "int8")}
    assert all(text.startswith("how ") for text in said.values())
    assert said["float32"] == fastrnn(*arguments)
    assert "precision must be one of" in fastrnn(*arguments, "--precision", "fp8", code=1)
    train = ["train", "lm", texts / "a.txt", "--out", tmp_path / "run", *SMALL, "--steps", 3]
    fastrnn(*train, "--precision", "bf16")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["precision"] == "bf16"
    fastrnn("train", "lm", "--out", tmp_path / "run", "--resume", "--steps", 5)
    train[train.index(tmp_path / "run")] = tmp_path / "other"
    assert "--precision must be one of float32, bf16; got 'int8'" in fastrnn(
        *train, "--precision", "int8", code=1
    )


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_several_runs(run, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    out = tmp_path / f"curves.{suffix}"
    other = tmp_path / run.name  # the same name in another folder is another curve
    shutil.copytree(run, other)
    said = fastrnn("plot", run, other, "--out", out, "--against", "seconds", "--title", "two")
    assert str(out) in said and out.stat().st_size > 5000
    assert out.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[suffix]
    if suffix == "svg":
        drawn = out.read_text()
        assert f">{run}</text>" in drawn and f">{other}</text>" in drawn


def test_plot_watches(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    lines = (run / "history.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").touch()
    # In a shell's background job it is ignored, and so it would be in the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(
        [sys.executable, "-m", "fastrnn.cli", "plot", tmp_path / "run", "--watch", "--every", ".1"],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    picture = f"{tmp_path / 'run' / 'curve.png'}\n"
    time.sleep(1)  # it waits for the first step
    history = tmp_path / "run" / "history.jsonl"
    history.write_bytes(lines[0])
    assert child.stdout.readline() == picture
    history.write_bytes(b"".join(lines))
    assert child.stdout.readline() == picture
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    child.stdout.close()


def test_report(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    page = tmp_path / "report.html"
    assert fastrnn("report", run, "--out", page) == f"{page}\n"
    text = page.read_text()
    assert "data:image/png;base64," in text and "A sample, at temperature 0.7" in text
    steps = len(read_history(run))
    assert f"<td>steps<td>{steps}" in text and "best valid_bpc" in text and "<td>bptt<td>" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # one file


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lm", "tagger"])
def test_demo(tmp_path, model):
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    out = tmp_path / "demo"
    for _ in range(2):  # a second demo replaces the first
        said = fastrnn("demo", model, "--out", out, "--steps", 8, "--epochs", 2)
        assert {"lm": "what it writes", "tagger": "token accuracy"}[model] in said
        assert (out / "curve.png").stat().st_size > 5000 and str(out / "curve.png") in said
    (out / ".demo").unlink()
    assert "is not empty" in fastrnn("demo", model, "--out", out, code=1)
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty" in fastrnn("demo", model, "--out", tmp_path, code=1)
    assert "demo must be lm or tagger, got 'x'" in fastrnn("demo", "x", code=1)
    said = fastrnn("report", out)
    assert said == f"{out / 'report.html'}\n"


def test_shell_completion():
    assert "complete -o default" in fastrnn("--show-completion", "bash")


@pytest.mark.slow
def test_bench():
    said = fastrnn("bench", "--only", "padding", "--seconds", 0)
    assert "multiply-add peak measured in the same run" in said
    assert "| padding lists | " in said and "| padding arrays | " in said
    said = fastrnn("bench", "--only", "one step", "--seconds", 0, "--threads", 1)
    assert "| | fastrnn a step |" in said and "1 threads" in said
    assert fastrnn("bench", "--only", "LSMT", code=1) == "fastrnn: --only 'LSMT' matches no case\n"


def test_info():
    said = fastrnn("info")
    for word in ("cpu path", "threads", "numba", "numpy", "cache", "float32 lanes"):
        assert word in said


def test_options_that_need_each_other(texts, tmp_path):
    for options, message in (
        (["--patience", 3], "patience, ReduceOnPlateau and ASGD without start need evaluate"),
        (["--warmup", 3], "--warmup goes with --schedule cosine"),
    ):
        said = fastrnn("train", "lm", texts / "a.txt", "--out", tmp_path / "x", *options, code=1)
        assert message in said and not (tmp_path / "x").exists()


def test_errors_are_one_line(texts, run, tmp_path):
    missing = tmp_path / "missing.txt"
    assert fastrnn("train", "lm", missing, code=1) == f"fastrnn: no such file: {missing}\n"
    said = fastrnn("train", "lm", texts / "a.txt", "--out", tmp_path / "x", "--optimizer", "best",
                   code=1)  # fmt: skip
    assert said == "fastrnn: --optimizer must be one of sgd, asgd, adam, adamw; got 'best'\n"
    assert "no such file" in fastrnn("sample", tmp_path, code=1)
    assert "no such file" in fastrnn("plot", tmp_path, code=1)
    assert "against must be" in fastrnn("plot", run, "--against", "time", code=1)
    broken = tmp_path / "history.jsonl"
    broken.write_text('{"step": 1}\n')
    assert "history.jsonl, line 1 is damaged" in fastrnn("plot", tmp_path, code=1)
    assert "--hidden" in fastrnn("train", "lm", texts / "a.txt", "--hidden", 0, code=2)


def test_a_resumed_run_knows_its_options(text, tmp_path):
    run = tmp_path / "run"
    options = "--embed", 4, "--hidden", 8, "--batch", 4, "--bptt", 10, "--eval-every", 5
    fastrnn("train", "lm", text, "--out", run, "--steps", 5, *options)
    fastrnn("train", "lm", "--resume", "--out", run, "--steps", 10, "--lr", 1e-3)
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["lr"] for line in lines] == [2e-3] * 5 + [1e-3] * 5
    text.write_text(text.read_text() + "more")
    said = fastrnn("train", "lm", "--resume", "--out", run, "--steps", 15, code=1)
    assert "cannot be resumed: the files hold other data than they did" in said
    for damaged in ("[]", "3", "null"):
        (run / "options.json").write_text(damaged)
        said = fastrnn("train", "lm", "--resume", "--out", run, code=1)
        assert "options.json is damaged: it must hold an object" in said.replace("\n", " ")
    assert "train lm needs a text" in fastrnn("train", "lm", code=1)


def test_shards_of_runs(text, tmp_path):
    """One by default; those of a run stay, also of an older run, which did not say so."""
    out, options = tmp_path / "run", tmp_path / "run" / "options.json"
    fastrnn("train", "lm", text, "--out", out, "--steps", 2, *SMALL)
    known = json.loads(options.read_text())
    assert known.pop("shards") == 1
    options.write_text(json.dumps(known))
    said = fastrnn("train", "lm", "--resume", "--out", out, "--steps", 3, "--shards", 2, code=1)
    assert "--shards was 1" in said
    fastrnn("train", "lm", "--resume", "--out", out, "--steps", 3)
    other = tmp_path / "other"
    fastrnn("train", "lm", text, "--from", out, "--out", other, "--steps", 2, "--shards", 4)
    assert load_json(other / "options.json")["shards"] == 4
    fastrnn("train", "lm", text, "--from", other, "--out", tmp_path / "last", "--steps", 1)
    assert load_json(tmp_path / "last" / "options.json")["shards"] == 1


def test_units_scores_and_a_run_from_another(texts, tmp_path):
    run, finer = tmp_path / "words", tmp_path / "finer"
    small = ["--embed", 16, "--hidden", 16, "--batch", 4, "--bptt", 10, "--eval-every", 0]
    said = fastrnn(
        "train", "lm", texts / "a.txt", "--valid", texts / "valid.txt", "--out", run, *small,
        "--unit", "word", "--vocab-size", 15, "--tied", "--dropout", 0.1, "--weight-dropout", 0.1,
        "--variable-bptt", "--optimizer", "asgd", "--lr", 5, "--schedule", "decay",
        "--decay-after", 1, "--epochs", 3, "--steps", 1,
    )  # fmt: skip
    assert "perplexity" in said and "words per second" in said and "15 of them different" in said
    history = read_history(run)
    epochs = [line for line in history if "valid_perplexity" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["valid_perplexity"] < epochs[0]["valid_perplexity"] < 20
    full = [max(h["lr"] for h in history if h["epoch"] == epoch) for epoch in (1, 2, 3)]
    assert full[1] < 0.7 * full[0] and full[2] < 0.7 * full[1]
    said = fastrnn("sample", run, "--prime", "pack my", "--length", 4, "--top-k", 1)
    assert said.startswith("pack my ") and len(said.split()) >= 5
    assert said == fastrnn("sample", run, "--prime", "pack my", "--length", 4, "--top-p", 1e-6)
    scored = [line.split("\t") for line in fastrnn("score", run, texts / "valid.txt").splitlines()]
    assert [json.loads(unit) for _, unit in scored[:3]] == ["pack", "my", "box"]
    assert fastrnn("score", run, input=TEXT[:2000]).splitlines()[0].split("\t") == scored[0]
    assert all(float(p) < 0 for p, _ in scored)

    # The best weights, other settings; what is not given stays.
    said = fastrnn("train", "lm", "--from", run, "--out", finer, "--lr", 0.1, "--dropout", 0.0,
                   "--optimizer", "sgd", "--epochs", 2)  # fmt: skip
    options = load_json(finer / "options.json")
    assert (options["lr"], options["dropout"], options["batch"]) == (0.1, 0.0, 4)
    assert load_json(finer / "config.json")["weight_dropout"] == 0.1
    first = read_history(finer)[0]
    assert first["step"] == 1 and first["loss"] < history[0]["loss"]
    shutil.rmtree(run)  # no longer needed
    said = fastrnn("train", "lm", "--resume", "--out", finer, "--epochs", 3)
    assert len(read_history(finer)) > len(history) * 2 / 3
    said = fastrnn("train", "lm", "--from", finer, "--out", run, "--hidden", 9, code=1)
    assert f"--hidden cannot be given with --from: {finer} decides" in said.replace("\n", "")
    said = fastrnn(
        "train", "lm", "--resume", "--out", finer, "--steps", len(read_history(finer)) + 2
    )
    assert f"{len(read_history(finer))} steps" in said  # not epochs any more
    (finer / "options.json").unlink()  # as a model that was saved in Python
    fastrnn("train", "lm", texts / "a.txt", "--from", finer, "--out", run, "--steps", 2)
    assert load_json(run / "options.json")["weight_dropout"] == 0.1
    assert load_json(run / "config.json")["weight_dropout"] == 0.1
    said = fastrnn("train", "lm", "--from", finer, "--out", finer, "--resume", code=1)
    assert "--resume and --from exclude each other" in said


@pytest.mark.parametrize("options, message", [
    (["--lower"], "--lower goes with --unit word"),
    (["--unit", "word", "--min-count", 3], "--min-count goes with --unit char"),
    (["--unit", "bpe", "--vocab-size", 100], "--vocab-size must be at least 256 for bpe"),
    (["--cutoffs", "a,b"], "--cutoffs must be numbers such as 1,2; got 'a,b'"),
    (["--optimizer", "asgd"], "ASGD without start need evaluate"),
    (["--unit", "syllable"], "--unit must be one of char, word, bpe"),
])  # fmt: skip
def test_options_of_units(texts, tmp_path, options, message):
    said = fastrnn("train", "lm", texts / "a.txt", "--out", tmp_path / "run", *options, code=1)
    assert message in said.replace("\n", " ")


def test_a_run_of_byte_pairs_resumes(texts, tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    run = tmp_path / "run"
    options = "--unit", "bpe", "--vocab-size", 300, "--cell", "gru", "--cutoffs", "50,200"
    fastrnn("train", "lm", texts / "a.txt", "--out", run, "--steps", 10, *options, *SMALL)
    fastrnn("train", "lm", "--resume", "--out", run, "--steps", 20)
    assert len(read_history(run)) == 20
    assert len(fastrnn("sample", run, "--length", 5)) > 5


def test_version():
    wanted = f"fastrnn {version('fastrnn')}"
    for module in ("fastrnn", "fastrnn.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"],
            capture_output=True,
            text=True,
            cwd=os.sep,
        )
        assert done.stdout.strip() == wanted


def test_unknown_characters_of_a_prime(text, tmp_path):
    run = tmp_path / "run"
    fastrnn("train", "lm", text, "--out", run, "--steps", 2, "--hidden", 8, "--batch", 4)
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "sample", run, "--length", "5", "--prime", "a\u03c9"],
        capture_output=True, text=True, encoding="utf-8", cwd=os.sep,
    )  # fmt: skip
    assert done.stdout.startswith("a\u03c9")
    assert done.stderr == "the model does not know these characters of --prime: ['\u03c9']\n"


GOOD = '{"step": 1, "seconds": 1, "loss": 2, "smoothed": 2}\n'


@pytest.mark.parametrize("line", [
    "[" * 100_000, '{"step": 1e400, "seconds": 1, "loss": 2, "smoothed": 2}', "[]", "3", "\udcff",
    '{"step": 1, "seconds": 1, "loss": "2", "smoothed": 2}', GOOD.strip()[:-1] + ', "valid": []}',
    '{"step": 1' + "0" * 400 + ', "seconds": 1, "loss": 2, "smoothed": 2}', '{"step": 1}', "{",
], ids=lambda line: repr(line[:30]))  # fmt: skip
def test_a_damaged_history_is_refused_by_file_and_line(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(GOOD + line + "\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2 is damaged"):
        read_history(tmp_path)


def test_nested_json_is_refused_by_its_file(tmp_path):
    (tmp_path / "options.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"options\.json is damaged or not JSON"):
        load_json(tmp_path / "options.json")


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_history_that_is_no_file(tmp_path, text):
    os.mkfifo(tmp_path / "history.jsonl")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_history(tmp_path)
    said = fastrnn("train", "lm", text, "--out", tmp_path, "--hidden", 4, "--batch", 2, code=1)
    assert "history.jsonl is not a file" in said.replace("\n", "")
