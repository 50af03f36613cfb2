"""Files of a run that are damaged in every way, full disks, kills, and two processes at once.

Each file is cut at each tenth and has bits flipped; whatever reads it gives the right result or an
error of one line that names a file of the run.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_trainer import final, make_trainer

from fastrnn.checkpoint import only_one, save_arrays, write_bytes
from fastrnn.models import LanguageModel, Tagger
from fastrnn.plots import read_history

X = [["Ann", "ran", "home"], ["Bob", "slept"]] * 6
Y = [["B-PER", "O", "O"], ["B-PER", "O"]] * 6
VECTORS = {w: [i, 1.0] for i, w in enumerate(["ann", "ran", "home"])}
OPTIONS = {"hidden_size": 3, "char_hidden": 2, "char_dim": 2, "crf": True, "batch_size": 4}


def tagger(**more):
    return Tagger(VECTORS, epochs=2, **OPTIONS, **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, with all of its files."""
    folder = tmp_path_factory.mktemp("runs")
    trainer = make_trainer(folder / "lm")
    trainer.train(steps=12)
    trainer.model.save(folder / "lm")
    model = tagger().fit(X, Y, dev=(X, Y), run=folder / "tagger")
    model.save(folder / "tagger", include_vectors=True)
    return folder


def use_language_model(folder):
    """Everything that reads the files of such a run, and what it gives."""
    model = LanguageModel.load(folder)
    lines = read_history(folder)
    trainer = make_trainer(folder)
    trainer.resume()
    return model.sample(5, prime="a", seed=0), model.parameters.flat, trainer.step, lines


def use_tagger(folder):
    model = Tagger.load(folder)
    lines = read_history(folder)
    again = tagger().fit(X, Y, dev=(X, Y), run=folder, resume=True)
    return model.predict_proba(X)[0], again.predict_proba(X)[0], lines


USES = {"lm": use_language_model, "tagger": use_tagger}


def same(a, b) -> bool:
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def damages(data: bytes, draw: random.Random, count: int):
    """Contents that a damaged file may have."""
    yield from (data[: len(data) * k // 10] for k in range(10))
    yield from (b"null", b"[]", b"{}", b"\x00" * 64, b"[" * 100_000, data + data[:40])
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 1, 8])):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("kind, name", [
    ("lm", "config.json"), ("lm", "weights.safetensors"), ("lm", "checkpoint.safetensors"),
    ("lm", "history.jsonl"), ("tagger", "config.json"), ("tagger", "weights.safetensors"),
    ("tagger", "checkpoint.safetensors"), ("tagger", "vectors.npy"), ("tagger", "words.txt"),
])  # fmt: skip
def test_damaged_files(runs, tmp_path, kind, name):
    folder = tmp_path / kind
    shutil.copytree(runs / kind, folder)
    wanted = USES[kind](folder)
    whole = (runs / kind / name).read_bytes()
    refused = 0
    for data in damages(whole, random.Random(name), 110):
        shutil.rmtree(folder)
        shutil.copytree(runs / kind, folder)
        (folder / name).write_bytes(data)
        try:
            got = USES[kind](folder)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            assert str(folder) in text, (data[:80], text)
            assert "\n" not in text and len(text) < 1000, text
            refused += 1
        else:
            # Text may be damaged into other text that is valid: a name, a comment, a digit.
            assert name.endswith((".json", ".jsonl", ".txt")) or same(got, wanted), data[:80]
    assert refused >= 10


@pytest.mark.parametrize("changes", [
    {"hidden_size": 10**9}, {"num_layers": 10**9}, {"embedding_dim": 10**9}, {"hidden_size": 1e9},
    {"hidden_size": -1}, {"num_layers": None},
])  # fmt: skip
def test_a_config_may_not_ask_for_more_than_the_weights_have(runs, tmp_path, changes):
    shutil.copytree(runs / "lm", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    name = next(iter(changes))
    with pytest.raises(ValueError, match=rf"config\.json does not fit .*: {name} must be \d+$"):
        LanguageModel.load(tmp_path / "run")


@pytest.mark.parametrize("name", ["hidden_size", "num_layers", "char_hidden", "char_dim"])
def test_nor_may_the_config_of_a_tagger(runs, tmp_path, name):
    shutil.copytree(runs / "tagger", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["params"][name] = 10**9
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json does not fit .*: {name} must be \d+$"):
        Tagger.load(tmp_path / "run")


def test_two_processes_in_one_folder(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train(steps=2)
    code = (
        "import sys, time; from fastrnn.checkpoint import only_one\n"
        "with only_one(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE,
                             cwd=os.sep)  # fmt: skip
    assert other.stdout.readline() == b"in\n"
    message = "is in use by another process: wait for its end, or choose another folder"
    for call in lambda: trainer.train(steps=3), make_trainer(tmp_path).resume:
        with pytest.raises(ValueError, match=message):
            call()
    other.kill()
    other.wait()
    other.stdout.close()
    trainer.train(steps=3)
    with only_one(tmp_path), pytest.raises(ValueError, match=message):
        trainer.train(steps=4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
def test_a_child_that_lives_on_does_not_keep_the_folder(tmp_path):
    with only_one(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    entered = False
    with only_one(tmp_path):
        entered = True
    os.kill(child, signal.SIGKILL)
    assert entered
    os.waitpid(child, 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk(tmp_path, monkeypatch):
    """The error is the system's, and the file that was there stays."""
    path = tmp_path / "weights.safetensors"
    save_arrays(path, {"a": np.zeros(4)})
    before = path.read_bytes()
    monkeypatch.setattr("fastrnn.checkpoint._temporary", lambda path: path.with_name("full"))
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"x" * 100_000)
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
def test_a_hundred_kills(tmp_path):
    """After a kill at any moment the run resumes; at the end it has the bits of a whole run."""
    folder, draw, reached = tmp_path / "killed", random.Random(0), 0
    for _ in range(100):
        child = os.fork()
        if not child:
            try:
                trainer = make_trainer(folder)
                trainer.resume()
                trainer.train(steps=10**9)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        trainer = make_trainer(folder)
        trainer.resume()
        assert trainer.step >= reached
        reached = trainer.step
    resumed, whole = make_trainer(folder), make_trainer(tmp_path / "whole")
    assert resumed.resume() and reached > 100
    for trainer in resumed, whole:
        trainer.train(steps=reached + 5)
    for got, wanted in zip(final(resumed), final(whole), strict=True):
        if isinstance(wanted, dict):
            assert got.keys() == wanted.keys()
            assert all(np.array_equal(got[k], wanted[k]) for k in wanted)
        else:
            assert got == wanted
