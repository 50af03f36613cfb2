"""The loop: counting, best weights, stopping, divergence, kill and resume."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fastrnn import optim
from fastrnn.checkpoint import load_arrays
from fastrnn.data.text import TextStream, Vocabulary
from fastrnn.models import LanguageModel
from fastrnn.parameters import Parameters
from fastrnn.trainer import Diverged, Trainer

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


class Bowl:
    """loss = |w|^2 / 2 plus the batch's noise: as simple as a model can be."""

    def __init__(self, size=3):
        self.parameters = Parameters({"w": np.full(size, 4.0)}, "float64")
        self.rng = np.random.default_rng(0)
        self.seen = []

    def loss_and_gradient(self, batch):
        self.seen.append(batch)
        w = self.parameters.flat
        return float(w @ w / 2 + batch), w.copy(), 10

    def carried(self):
        return {}

    def carry(self, carried):
        assert not carried


class Numbers:
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def batches(self, epoch, skip):
        yield from (v + 100 * epoch for v in self.values[skip:])


def lines_of(trainer):
    return [json.loads(line) for line in trainer.history.read_text().splitlines()]


def test_steps_epochs_and_the_three_losses(tmp_path):
    model = Bowl()
    values = iter([5.0, 3.0, 4.0])
    trainer = Trainer(
        model, optim.SGD(0.5), Numbers([0, 3, 6]), tmp_path, evaluate=lambda: next(values),
        progress=False, max_norm=1.0,
    )  # fmt: skip
    trainer.train(epochs=3)
    assert model.seen == [0, 3, 6, 100, 103, 106, 200, 203, 206]
    lines = lines_of(trainer)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["epoch"] for line in lines] == [1] * 3 + [2] * 3 + [3] * 3
    assert [i for i, line in enumerate(lines) if "epoch_loss" in line] == [2, 5, 8]
    losses = [line["loss"] for line in lines]
    assert lines[2]["epoch_loss"] == pytest.approx(np.mean(losses[:3]))
    assert lines[8]["epoch_loss"] == pytest.approx(np.mean(losses[6:]))
    mean, weight = 0.0, 0.0
    for line in lines:
        mean, weight = 0.95 * mean + 0.05 * line["loss"], 0.95 * weight + 0.05
        assert line["smoothed"] == pytest.approx(mean / weight)
    assert lines[0]["grad_norm"] == pytest.approx(4 * np.sqrt(3))  # before clipping
    assert [line["valid_loss"] for line in lines if "valid_loss" in line] == [5, 3, 4]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] > 0
    # The best weights, from the second evaluation, are in the model and in the file.
    assert trainer.best == 3 and trainer.stopped == "done"
    arrays, notes = load_arrays(trainer.weights)
    assert notes == {"step": 6, "valid_loss": 3.0}
    assert np.array_equal(arrays["w"], model.parameters["w"])
    assert not np.array_equal(load_arrays(trainer.checkpoint)[0]["parameters.w"], arrays["w"])


def test_maximize_and_early_stopping(tmp_path):
    values = iter([0.1, 0.5, 0.4, 0.45, 0.9])
    trainer = Trainer(
        Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, evaluate=lambda: next(values),
        metric="valid_f1", maximize=True, evaluate_every=2, patience=2, progress=False,
    )  # fmt: skip
    trainer.train(steps=100)
    assert trainer.stopped == "early" and trainer.step == 8 and trainer.best == 0.5


def test_without_evaluation_the_last_weights_are_kept(tmp_path):
    model = Bowl()
    trainer = Trainer(model, optim.SGD(0.1), Numbers([0]), tmp_path, progress=False)
    trainer.train(steps=3)
    assert np.allclose(load_arrays(trainer.weights)[0]["w"], 4 * 0.9**3)
    assert np.allclose(model.parameters["w"], 4 * 0.9**3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_names_the_step_and_the_checkpoint(tmp_path, what):
    class Cliff(Bowl):
        def loss_and_gradient(self, batch):
            loss, gradient, items = super().loss_and_gradient(batch)
            if len(self.seen) == 8:
                if what == "loss":
                    loss = float("nan")
                else:
                    gradient[1] = np.inf
            return loss, gradient, items

    model = Cliff()
    trainer = Trainer(
        model, optim.SGD(0.1), Numbers([0]), tmp_path, checkpoint_every=5, progress=False
    )
    message = (
        rf"{what} is .* at step 8; the last good checkpoint is .*checkpoint\.safetensors \(step 5\)"
    )
    with pytest.raises(Diverged, match=message):
        trainer.train(steps=20)
    assert np.isfinite(model.parameters.flat).all() and len(lines_of(trainer)) == 7
    trainer = Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, progress=False)
    assert trainer.resume() and trainer.step == 5 and len(lines_of(trainer)) == 5
    with pytest.raises(Diverged, match="there is no checkpoint yet"):
        Trainer(model, optim.SGD(0.1), Numbers([float("inf")]), tmp_path / "x").train(steps=1)


def test_refused(tmp_path):
    trainer = Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, progress=False)
    for arguments in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValueError, match="give either steps or epochs"):
            trainer.train(**arguments)
    with pytest.raises(ValueError, match="data has no batches"):
        Trainer(Bowl(), optim.SGD(0.1), Numbers([]), tmp_path)
    with pytest.raises(ValueError, match="evaluate_every must be at least 0"):
        Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, evaluate_every=-1)
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, max_norm=0)
    with pytest.raises(ValueError, match=r"metric must not be one of step, .*; got 'loss'"):
        Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, metric="loss")
    with pytest.raises(
        ValueError, match="patience, ReduceOnPlateau and ASGD without start need evaluate"
    ):
        Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, patience=2)

    class Empty(Numbers):
        def batches(self, epoch, skip):
            return iter(())

    with pytest.raises(ValueError, match="data gave none of its 2 batches"):
        Trainer(Bowl(), optim.SGD(0.1), Empty([0, 0]), tmp_path / "empty").train(steps=1)
    assert not Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path).resume()


def test_training_on_goes_on_from_the_last_weights_not_the_best(tmp_path):
    def make(folder):
        values = iter([1.0, 5.0, 4.0, 3.0])  # the first is the best
        return Trainer(
            Bowl(), optim.SGD(0.1, momentum=0.9), Numbers([0]), tmp_path / folder,
            evaluate=lambda: next(values), evaluate_every=2, progress=False,
        )  # fmt: skip

    whole, parts = make("whole"), make("parts")
    whole.train(steps=8)
    parts.train(steps=4)
    parts.train(steps=8)
    a, b = (load_arrays(t.checkpoint)[0] for t in (whole, parts))
    assert np.array_equal(a["parameters.w"], b["parameters.w"])
    assert whole.best == parts.best == 1


def test_an_evaluation_that_is_not_a_number_is_never_the_best(tmp_path):
    values = iter([float("nan"), 2.0, float("nan")])
    trainer = Trainer(
        Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, evaluate=lambda: next(values),
        progress=False,
    )  # fmt: skip
    trainer.train(steps=3)
    assert trainer.best == 2.0


def test_a_run_is_never_mixed_with_another(tmp_path):
    Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, progress=False).train(steps=4)
    other = Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a run: call resume first"):
        other.train(steps=4)
    other.checkpoint.unlink()  # as if killed before the first checkpoint
    assert not other.resume()
    other.train(steps=2)
    assert [line["step"] for line in lines_of(other)] == [1, 2]


def test_an_early_stop_is_not_forgotten(tmp_path):
    def make(patience):
        return Trainer(
            Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path, evaluate=lambda: 1.0,
            patience=patience, progress=False,
        )  # fmt: skip

    first = make(3)
    first.train(steps=100)
    assert first.stopped == "early" and first.step == 4
    again = make(3)
    assert again.resume()
    again.train(steps=100)
    assert again.stopped == "early" and again.step == 4
    patient = make(5)
    assert patient.resume()
    patient.train(steps=100)
    assert patient.stopped == "early" and patient.step == 6


def test_ctrl_c_saves(tmp_path):
    trainer = Trainer(Bowl(), optim.SGD(0.01), Numbers([0]), tmp_path, progress=False)

    def interrupt():
        while trainer.step < 5:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    helper = threading.Thread(target=interrupt, daemon=True)
    helper.start()
    trainer.train(steps=10**7)
    helper.join()
    assert trainer.stopped == "interrupted" and 5 <= trainer.step < 10**7
    assert signal.getsignal(signal.SIGINT) is before
    _, notes = load_arrays(trainer.checkpoint)
    assert notes["step"] == trainer.step == len(lines_of(trainer))


def test_the_live_line(tmp_path, capsys):
    """The rate, the time left and the best value so far."""
    trainer = make_trainer(tmp_path)
    trainer.progress = True
    trainer.train(steps=18)
    shown = capsys.readouterr().err
    assert re.search(r"18/18 \[\d+:\d+<00:00, .*loss \d\.\d+ nats, best valid_bpc \d", shown)
    assert re.search(r"[\d,]+ items/s\]", shown)


# The same for a real model, in a process that is killed.

SCRIPT = """
import sys, time
from test_trainer import make_trainer
trainer = make_trainer(sys.argv[1])
step = trainer.model.loss_and_gradient
trainer.model.loss_and_gradient = lambda chunk: (time.sleep(0.02), step(chunk))[1]
trainer.resume()
trainer.train(steps=int(sys.argv[2]))
"""


def make_trainer(folder):
    vocabulary = Vocabulary.of(TEXT)
    model = LanguageModel(
        vocabulary, embedding_dim=8, hidden_size=24, num_layers=2, dropout=0.2, seed=0
    )
    ids = vocabulary.encode(TEXT)
    return Trainer(
        model, optim.Adam(5e-3), TextStream(ids, 5, 30), folder, max_norm=0.5,
        schedule=optim.ReduceOnPlateau(patience=1), metric="valid_bpc", evaluate_every=9,
        evaluate=lambda: model.bits_per_character(ids[:200]), checkpoint_every=7, progress=False,
    )  # fmt: skip


def final(trainer):
    arrays, notes = load_arrays(trainer.checkpoint)
    del notes["counters"]["_seconds"]
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(trainer)]
    return arrays, notes, lines, load_arrays(trainer.weights)[0]


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """Dropout, carried state, schedule, moments, best weights: everything goes on."""
    whole = make_trainer(tmp_path / "whole")
    whole.train(steps=60)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(folder), "10000"]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    child = subprocess.Popen(command, env=environment, cwd=tmp_path)
    history = folder / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if history.exists() and history.read_bytes().count(b"\n") >= 16:
            break
        time.sleep(0.002)
    child.kill()
    child.wait()
    reached = history.read_bytes().count(b"\n")
    assert reached >= 16
    # Only what the 60 steps would have seen: start over from a checkpoint before them.
    resumed = make_trainer(folder)
    assert resumed.resume() and 14 <= resumed.step <= reached
    assert resumed.step < 60
    with open(history, "a") as file:
        file.write('{"step": 1')  # a line cut short by the kill
    resumed = make_trainer(folder)
    assert resumed.resume()
    resumed.train(steps=60)
    arrays, notes, lines, weights = final(whole)
    got_arrays, got_notes, got_lines, got_weights = final(resumed)
    assert notes == got_notes and lines == got_lines
    for a, b in ((arrays, got_arrays), (weights, got_weights)):
        assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_foreign_or_damaged_checkpoint_is_refused_by_name(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train(steps=3)
    other = Trainer(Bowl(), optim.SGD(0.1), Numbers([0]), tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors belongs to another model"):
        other.resume()
    trainer.checkpoint.write_bytes(trainer.checkpoint.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        make_trainer(tmp_path).resume()
