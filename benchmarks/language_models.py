"""Language models here and in PyTorch: how well they learn, and how fast. See docs/results.md.

    python benchmarks/language_models.py TRAIN.txt VALID.txt --runs RUNS [--only TASK ...]
                                         [--seeds N ...] [--speed]

words: the small model of Zaremba et al. (2014): two layers of 200 units, the 10,000 most frequent
words in lower case, 20 streams, 20 steps, SGD with a rate that is halved after each epoch from the
fifth on, 13 epochs, weights uniform in [-0.1, 0.1]. The loss is a mean over the steps, not their
sum as in the paper: its rate of 1 is 20 here, its largest norm of 5 is 0.25.

characters: embedding 64, LSTM of 512 units, 64 streams, 100 steps, Adam 2e-3, largest norm 1, 300
steps.

Each run is a file in RUNS; finished runs are skipped. ``--speed`` only times training steps of both
packages, in turns.
"""

import argparse
import json
import math
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from report import put_between

from fastrnn import optim
from fastrnn.bench.report import cpu_name
from fastrnn.data.text import TextStream, Vocabulary, read_text
from fastrnn.data.tokens import TOKEN
from fastrnn.data.vocabularies import WordVocabulary
from fastrnn.models import LanguageModel
from fastrnn.runtime.threads import set_num_threads

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results" / "language_models.json"
SEEDS = (0, 1, 2)


class Task(NamedTuple):
    """A model and how it is trained."""

    title: str
    embedding: int
    hidden: int
    layers: int
    batch: int
    bptt: int
    rate: float
    norm: float
    epochs: int  # 0: steps
    steps: int
    initial: float | None  # bound of uniform weights; None: each package's own
    size: int  # words or characters of training text
    valid: int

    def optimizer(self):
        """Of this package."""
        return optim.SGD(self.rate) if self.epochs else optim.Adam(self.rate)


TASKS = {
    "words": Task("words", 200, 200, 2, 20, 20, 20.0, 0.25, 13, 0, 0.1, 200_000, 50_000),
    "characters": Task("characters", 64, 512, 1, 64, 100, 2e-3, 1.0, 0, 300, None, 2**62, 200_000),
}


class Ours:
    """The model of this package."""

    def __init__(self, task: Task, vocabulary, seed: int):
        self.task, self.optimizer = task, task.optimizer()
        self.model = LanguageModel(
            vocabulary, embedding_dim=task.embedding, hidden_size=task.hidden,
            num_layers=task.layers, seed=seed,
        )  # fmt: skip
        if task.initial is not None:
            flat = self.model.parameters.writing()
            bound = task.initial
            flat[:] = np.random.default_rng(seed).uniform(-bound, bound, len(flat))

    def step(self, chunk, rate: float) -> None:
        """One update."""
        _, gradient, _ = self.model.loss_and_gradient(chunk)
        self.optimizer.step(self.model.parameters, gradient, lr=rate, max_norm=self.task.norm)

    def loss(self, ids) -> float:
        """The mean over a text, in nats."""
        return self.model.cross_entropy(ids, batch=self.task.batch, bptt=self.task.bptt)


class Theirs:
    """The same in PyTorch."""

    def __init__(self, task: Task, vocabulary, seed: int):
        import torch

        torch.manual_seed(seed)
        self.torch, self.task, self.state = torch, task, None
        self.embedding = torch.nn.Embedding(len(vocabulary), task.embedding)
        self.lstm = torch.nn.LSTM(task.embedding, task.hidden, task.layers)
        self.linear = torch.nn.Linear(task.hidden, len(vocabulary))
        layers = self.embedding, self.lstm, self.linear
        self.parameters = [p for layer in layers for p in layer.parameters()]
        if task.initial is not None:
            for p in self.parameters:
                torch.nn.init.uniform_(p, -task.initial, task.initial)
        make = torch.optim.SGD if task.epochs else torch.optim.Adam
        self.optimizer = make(self.parameters, task.rate)

    def _loss(self, chunk):
        torch = self.torch
        if chunk.first:
            self.state = None
        h, state = self.lstm(self.embedding(torch.from_numpy(chunk.ids)), self.state)
        self.state = tuple(s.detach() for s in state)
        targets = torch.from_numpy(chunk.targets.reshape(-1))
        return torch.nn.functional.cross_entropy(self.linear(h).flatten(0, 1), targets)

    def step(self, chunk, rate: float) -> None:
        """One update."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        self._loss(chunk).backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, self.task.norm)
        self.optimizer.step()

    def loss(self, ids) -> float:
        """The mean over a text, in nats."""
        total = seen = 0.0
        with self.torch.no_grad():
            for chunk in TextStream(ids, self.task.batch, self.task.bptt).batches():
                total += self._loss(chunk).item() * chunk.ids.size
                seen += chunk.ids.size
        self.state = None
        return total / seen


SIDES = {"fastrnn": Ours, "PyTorch": Theirs}


def read(name: str, train: Path, valid: Path):
    """``(vocabulary, ids of the training text, ids of the held-out text)``."""
    task = TASKS[name]
    if name == "characters":
        text = read_text(train)
        vocabulary = Vocabulary.of(text, min_count=100)
        return (
            vocabulary,
            vocabulary.encode(text),
            vocabulary.encode(read_text(valid)[: task.valid]),
        )

    def first(path: Path, count: int) -> str:
        text = read_text(path)
        *_, last = islice(TOKEN.finditer(text), count)
        return text[: last.end()]

    text = first(train, task.size)
    words = WordVocabulary.of(text, size=10_000, lower=True)
    return words, words.encode(text), words.encode(first(valid, task.valid))


def train(name: str, side: str, seed: int, vocabulary, ids, valid) -> dict:
    """The mean loss of the held-out text at the end and, in epochs, after each."""
    task = TASKS[name]
    model, data = SIDES[side](task, vocabulary, seed), TextStream(ids, task.batch, task.bptt)
    schedule = optim.StepDecay(len(data), start=4 * len(data)) if task.epochs else optim.Constant()
    total, step, curve = task.epochs * len(data) or task.steps, 0, []
    while step < total:
        for chunk in data.batches(step // len(data)):
            model.step(chunk, task.rate * schedule.factor(step))
            step += 1
            if step == total:
                break
        # Training goes on from the beginning of the text, so no state is lost.
        curve.append(round(model.loss(valid), 4))
        print(name, side, seed, step, curve[-1], flush=True)
    return {"nats": curve}


def speed(name: str, vocabulary, ids, rounds: int = 9, seconds: float = 2.0) -> dict:
    """Units per second of both packages, in turns: the medians."""
    task = TASKS[name]
    models = {side: make(task, vocabulary, 0) for side, make in SIDES.items()}
    chunks = list(islice(TextStream(ids, task.batch, task.bptt).batches(), 20))
    rates: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(rounds):
        for side, model in models.items():
            model.step(chunks[0], task.rate)  # what waits from the other side's turn ends here
            started, units = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                for chunk in chunks[:5]:
                    model.step(chunk, task.rate)
                    units += chunk.ids.size
            rates[side].append(units / (time.perf_counter() - started))
    return {side: round(statistics.median(values)) for side, values in rates.items()}


def table(name: str, results: dict) -> str:
    """Markdown, a line for each side."""
    task = TASKS[name]
    per_second = f"{name} per second"
    what, form = ("perplexity", math.exp) if name == "words" else ("bits per character", _bits)
    digits = 1 if name == "words" else 3
    lines = [
        f"| | {what}, seeds {', '.join(map(str, SEEDS))} | mean | standard deviation | "
        f"{per_second} | ratio |",
        "|---|---|--:|--:|--:|--:|",
    ]
    rates = results.get("speed", {})
    for side, runs in results["runs"].items():
        last = [form(run["nats"][-1]) for run in runs]
        rate, ratio = "", ""
        if rates:
            rate, ratio = f"{rates[side]:,}", f"{rates[side] / rates['PyTorch']:.2f}"
        lines.append(
            f"| {side} | {', '.join(f'{p:.{digits}f}' for p in last)} | "
            f"{statistics.mean(last):.{digits}f} | {statistics.stdev(last):.{digits}f} | {rate} | "
            f"{ratio} |"
        )
    size = f"{results['size']:,} {name} of training text"
    length = f"{task.epochs} epochs" if task.epochs else f"{task.steps} steps"
    cpu = f"; speed of training on {results['cpu']}" if rates else ""
    return "\n".join(lines) + f"\n\n{size}, {length}{cpu}.\n"


def _bits(nats: float) -> float:
    return nats / math.log(2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    import torch

    set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        vocabulary, ids, valid = read(name, arguments.train, arguments.valid)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        own = results.setdefault(name, {})
        if arguments.speed:
            own["speed"] = speed(name, vocabulary, ids)
            own["cpu"] = f"{cpu_name()}, {arguments.threads} threads"
            print(name, own["speed"])
        else:
            for seed in arguments.seeds:
                for side in arguments.sides:
                    path = arguments.runs / f"{name}-{side}-{seed}.json"
                    if not path.exists():
                        facts = train(name, side, seed, vocabulary, ids, valid)
                        path.write_text(json.dumps(facts) + "\n")
        paths = {
            side: [arguments.runs / f"{name}-{side}-{s}.json" for s in SEEDS] for side in SIDES
        }
        if all(path.exists() for of_side in paths.values() for path in of_side):
            own["size"] = len(ids)
            own["runs"] = {
                side: [json.loads(path.read_text()) for path in of_side]
                for side, of_side in paths.items()
            }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        if "runs" in own:
            marks = (
                f"<!-- {name}: generated by benchmarks/language_models.py -->",
                f"<!-- /{name} -->",
            )
            put_between(DOCS / "results.md", marks, table(name, own))


if __name__ == "__main__":
    main()
