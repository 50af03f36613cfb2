"""Training in shards: real processes over MPI, the tree of sums, and what it does not depend on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastrnn import ASGD, Adam
from fastrnn.checkpoint import load_arrays
from fastrnn.data.text import TextStream, Vocabulary
from fastrnn.distributed import Group
from fastrnn.distributed import dense as dense_module
from fastrnn.distributed.dense import BLOCK, DenseSum
from fastrnn.distributed.group import cover, tree_sum
from fastrnn.distributed.rows import Rows, RowSum, add
from fastrnn.distributed.sharded import ShardedSteps
from fastrnn.models import LanguageModel, Tagger
from fastrnn.trainer import Trainer
from helpers import mpiexec

JOB = Path(__file__).with_name("job.py")
TEXT = "a rose is a rose is a rose. " * 60


def command(processes: int, *args) -> list[str]:
    if not mpiexec():
        pytest.skip("the extra [mpi] or mpiexec is not installed")
    return [*mpiexec(), "-n", str(processes), sys.executable, *map(str, args)]


def job(processes: int, kind: str, steps: int, run: Path, *resume) -> dict:
    done = subprocess.run(
        command(processes, JOB, kind, steps, run, *resume), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The tree


@pytest.mark.parametrize("shards", range(1, 10))
def test_the_order_of_a_sum_does_not_depend_on_the_processes(shards):
    def joined(left, right):
        return f"({left}+{right})"

    leaves = {(s, s + 1): str(s) for s in range(shards)}
    whole = tree_sum((0, shards), leaves, joined)
    assert whole.count("+") == shards - 1
    for size in range(1, shards + 1):
        bounds = [p * shards // size for p in range(size + 1)]
        nodes = [n for a, b in itertools.pairwise(bounds) for n in cover((0, shards), a, b)]
        assert [s for first, last in nodes for s in range(first, last)] == list(range(shards))
        sums = {node: tree_sum(node, leaves, joined) for node in nodes}
        assert tree_sum((0, shards), sums, joined) == whole


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, BLOCK, 3 * BLOCK + 7])
def test_the_sum_of_one_process_is_the_tree(rng, shards, size):
    gradients = rng.standard_normal((shards, size)).astype(np.float32)
    dense = DenseSum(Group(shards), size, gradients.dtype)

    def shard(s, done):
        for first in (size // 2, 0):  # in two parts, the first of which is not final elsewhere
            done(gradients[s], s + 1, first)

    dense.node(0, shard)
    leaves = {(s, s + 1): gradients[s] * np.float32(s + 1) for s in range(shards)}
    expected = tree_sum((0, shards), leaves, np.add)
    mine = dense.mine()
    np.testing.assert_array_equal(dense.whole(mine, np.empty(size, np.float32)), expected)
    np.testing.assert_array_equal(dense.own(expected), mine)


def test_the_last_layers_are_sent_while_the_first_are_computed(monkeypatch):
    """The buckets that are complete go out before the next layer's gradient is there."""
    monkeypatch.setattr(dense_module, "LEAST", 1)
    model = LanguageModel(Vocabulary.of(TEXT), embedding_dim=64, hidden_size=64, num_layers=3)
    data = TextStream(model.vocabulary.encode(TEXT), 4, 10)
    steps = ShardedSteps(model, Adam(), data, Group(2))
    sent, left = [], []
    monkeypatch.setattr(steps._dense, "_send", lambda _, bucket: sent.append(bucket))
    put = model.gradient.put
    monkeypatch.setattr(
        model.gradient, "put", lambda *given: (put(*given), left.append(len(sent)))[0]
    )
    steps.step(next(steps.batches(0, 0)), 0.1, None, lambda: False)
    assert sent == sorted(sent) and len(sent) == dense_module.BUCKETS
    assert len(left) == 2 * 5  # two shards: the softmax, three layers, the embedding
    # Nothing of the first shard, which is added to the second; then more with each layer.
    assert left[:5] == [0] * 5
    assert 0 <= left[5] < left[6] < left[7] < left[8] <= left[9] < len(sent)


def test_rows_are_added_as_in_a_table(rng):
    def some(n):
        rows = np.sort(rng.permutation(200)[:n])
        return Rows(rows, rng.standard_normal((n, 3)))

    def table(rows):
        out = np.zeros((200, 3))
        out[rows.rows] = rows.values
        return out

    left, right, none = some(50), some(60), some(0)
    for a, b in ((left, right), (left, none), (none, right), (none, none)):
        both = add(a, b)
        assert (np.diff(both.rows) > 0).all()
        np.testing.assert_array_equal(table(both), table(a) + table(b))
    total = RowSum(Group(3), np.zeros((200, 3)))
    mine = total.mine({0: left, 1: none, 2: right})
    np.testing.assert_array_equal(table(mine), table(left) + table(right))
    np.testing.assert_allclose(total.squares(mine).sum(), (mine.values**2).sum(), rtol=1e-12)


# Real processes


@pytest.mark.parametrize("kind, steps", [("adam", 30), ("asgd", 12), ("tagger", 3)])
def test_the_same_bits_for_any_number_of_processes(tmp_path, kind, steps):
    one = job(1, kind, steps, tmp_path / "1")
    assert len(one["digests"]) == 1 and one["best"] is not None
    first, last = load_arrays(tmp_path / "1/checkpoint.safetensors")
    for processes in (2, 3, 4):
        other = job(processes, kind, steps, tmp_path / f"{processes}")
        assert {k: other[k] for k in ("digests", "step", "best")} == {
            k: one[k] for k in ("digests", "step", "best")
        }
        # The checkpoint is that of one process, too.
        arrays, notes = load_arrays(tmp_path / f"{processes}/checkpoint.safetensors")
        assert arrays.keys() == first.keys() and notes["rng"] == last["rng"]
        assert all(np.array_equal(arrays[name], first[name]) for name in first)


@pytest.mark.parametrize("kind, half, whole", [("adam", 11, 30), ("asgd", 9, 12), ("tagger", 1, 3)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, kind, half, whole):
    expected = job(1, kind, whole, tmp_path / "whole")["digests"]
    job(4, kind, half, tmp_path / "run")
    assert job(2, kind, whole, tmp_path / "run", "resume")["digests"] == expected


def test_no_more_bytes_than_a_ring(tmp_path):
    steps = 10
    for processes in (2, 4):
        facts = job(processes, "adam", steps, tmp_path / f"{processes}")
        ring = 2 * (processes - 1) / processes * 4 * facts["numbers"]
        padding = 2 * 4 * processes * BLOCK
        assert 0.99 * ring < facts["sent"] / steps <= ring + padding


def test_a_killed_process_ends_the_job_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen(
        command(2, JOB, "adam", 100_000, run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        deadline = time.monotonic() + 60
        history = run / "history.jsonl"
        while not history.exists() or history.read_text().count("\n") < 20:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        found = subprocess.run(
            ["pgrep", "-f", f"^{sys.executable} {JOB} adam 100000 {run}"],
            capture_output=True, text=True,
        )  # fmt: skip
        processes = list(map(int, found.stdout.split()))
        assert len(processes) == 2
        os.kill(processes[-1], signal.SIGKILL)
        running.communicate(timeout=60)
        assert running.returncode != 0
    _, notes = load_arrays(run / "checkpoint.safetensors")
    goal = notes["step"] + 7
    resumed = job(4, "adam", goal, run, "resume")
    assert resumed["step"] == goal
    assert resumed["digests"] == job(1, "adam", goal, tmp_path / "whole")["digests"]


# The command line


def fastrnn(processes: int, *args, stdin=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(processes, "-m", "fastrnn", *args), capture_output=True, text=True, input=stdin,
        cwd=os.sep,
    )  # fmt: skip


def test_commands(tmp_path):
    pytest.importorskip("typer", reason="the extra [cli] is not installed")
    train = tmp_path / "train.conll"
    train.write_text(
        "".join(f"Ann{i}\tB-P\nsaw\tO\nBob\tB-P\n\nHe\tO\nran\tO\n\n" for i in range(40))
    )
    run = tmp_path / "run"
    options = ["--train", train, "--dev", train, "--out", run, "--epochs", 2, "--hidden", 8]
    done = fastrnn(2, "train", "tagger", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("80 sentences") == 1 and "2 processes of" in done.stdout
    options = json.loads((run / "options.json").read_text())
    assert options["shards"] == 2
    lines = "".join(f"Ann{i} saw\n" for i in range(50))
    for stdin, args in ((None, ("eval", run, train)), (lines, ("tag", run, "--at-once", 7))):
        one, three = fastrnn(1, *args, stdin=stdin), fastrnn(3, *args, stdin=stdin)
        assert one.returncode == three.returncode == 0, three.stderr
        assert one.stdout == three.stdout != ""
    again = fastrnn(2, "train", "tagger", "--train", train, "--out", run)
    assert again.returncode != 0
    assert again.stderr.count("holds a run already") == 1
    fewer = fastrnn(3, "train", "tagger", "--resume", "--out", run, "--epochs", 3)
    assert fewer.returncode != 0
    assert fewer.stderr.count("shards must be at least the number of processes, 3; got 2") == 1


def test_an_error_in_one_process_ends_all(tmp_path):
    """The others wait for it, and would for ever."""
    pytest.importorskip("typer", reason="the extra [cli] is not installed")
    script = tmp_path / "script.py"
    script.write_text(
        "from fastrnn.cli.common import processes\n"
        "with processes() as group:\n"
        "    if not group.lead:\n"
        "        raise RuntimeError('only here')\n"
        "    group.comm.Barrier()\n"
    )
    done = subprocess.run(command(2, script), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "RuntimeError: only here" in done.stderr


# What fits


def model_and_data(batch=8):
    model = LanguageModel(Vocabulary.of(TEXT), embedding_dim=8, hidden_size=16, seed=0)
    return model, TextStream(model.vocabulary.encode(TEXT), batch, 20)


def test_shards_give_the_gradient_of_the_whole_batch(tmp_path):
    """To rounding: the first step has the same loss, norm and weights."""
    out = []
    for shards in (1, 4, 7):
        model, data = model_and_data()
        trainer = Trainer(
            model, Adam(0.01), data, tmp_path / f"{shards}", group=Group(shards), progress=False
        )
        trainer.train(steps=3)
        lines = [json.loads(line) for line in trainer.history.read_text().splitlines()]
        out.append([(line["loss"], line["grad_norm"], line["items"]) for line in lines])
    np.testing.assert_allclose(out[1], out[0], rtol=2e-4)
    np.testing.assert_allclose(out[2], out[0], rtol=2e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    model, data = model_and_data()
    with pytest.raises(TypeError, match="shards must be an int"):
        Group("4")
    with pytest.raises(TypeError, match="comm must be an object with"):
        Group(2, comm=3)
    alike = Group(2)
    alike.size, alike.comm = 2, SimpleNamespace(allgather=lambda facts: [facts, "others"])
    with pytest.raises(ValueError, match="the text must be the same in all processes: process 0"):
        alike.check_same("the text", 7)
    with pytest.raises(TypeError, match="group must be a Group, got int"):
        Trainer(model, Adam(), data, tmp_path, group=2)
    with pytest.raises(ValueError, match="shards must be at most the batch of 8, got 9"):
        Trainer(model, Adam(), data, tmp_path, group=Group(9))
    with pytest.raises(ValueError, match="shards must be at most the batch_size of 2, got 3"):
        Tagger(batch_size=2).fit([["a"]] * 4, [["O"]] * 4, group=Group(3))
    on_device = LanguageModel(Vocabulary.of(TEXT), embedding_dim=8, hidden_size=16)
    on_device.gradient.flat = object()
    with pytest.raises(ValueError, match="shards need a model on the CPU"):
        Trainer(on_device, Adam(), data, tmp_path, group=Group(2))

    steps, shorter = ShardedSteps(model, Adam(), data, Group(2)), model.parameters.size - 1
    with pytest.raises(ValueError, match=rf"first_moment must have .*, got \({shorter},\)"):
        steps.load({"optimizer.first_moment": np.zeros(shorter, "f")})

    class Other:
        def __len__(self):
            return 1

        def batches(self, epoch, skip):
            return iter([])

    with pytest.raises(TypeError, match="part"):
        Trainer(model, Adam(), Other(), tmp_path, group=Group(2))
    words = Tagger(word_dim=4, hidden_size=4, epochs=1).fit([["a"]] * 4, [["O"]] * 4)
    network, batches = words.network_, words.trainer_.data
    with pytest.raises(ValueError, match="rows must be empty: ASGD averages no tables, got words"):
        Trainer(network, ASGD(start=0), batches, tmp_path / "a", group=Group(2)).train(steps=1)
    Trainer(model, Adam(), data, tmp_path, group=Group(4), progress=False).train(steps=2)
    with pytest.raises(ValueError, match="is of a run in 4 shards, not 2"):
        Trainer(model, Adam(), data, tmp_path, group=Group(2)).resume()
