"""What makes a character model learn, measured: the runs and pictures of docs/convergence.md.

    python benchmarks/convergence.py TRAIN.txt VALID.txt --runs RUNS [--only NAME ...]

Each run is a folder below RUNS; finished ones are not made again, interrupted ones go on.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from fastrnn import optim
from fastrnn.data.text import TextStream, Vocabulary, read_text
from fastrnn.kernels.cpu.threads import set_num_threads
from fastrnn.models import LanguageModel
from fastrnn.plots import plot_runs, read_history
from fastrnn.trainer import Diverged, Trainer

DOCS = Path(__file__).parents[1] / "docs" / "convergence"
SEEDS = (0, 1, 2)
STEPS = 300


class RestartedAdam(optim.Adam):
    """A slip in an Adam written by hand: the moments are made anew for every batch.

    What is left is a step of the size ``lr`` along the sign of each derivative.
    """

    def _update(self, w, g, scale, lr):
        for moment in self._state.values():
            moment[:] = 0
        self.steps = 1
        super()._update(w, g, scale, lr)


class RootlessAdam(optim.Adam):
    """Another slip: the second moment without its root, ``lr * m / (v + eps)``.

    A derivative of 1e-3 then moves its weight by 1e3 times the learning rate.
    """

    def _update(self, w, g, scale, lr):
        m, v = self._state["first_moment"], self._state["second_moment"]
        beta1, beta2 = self.betas
        m += (1 - beta1) * (scale * g - m)
        v += (1 - beta2) * ((scale * g) ** 2 - v)
        w -= lr * (m / (1 - beta1**self.steps)) / (v / (1 - beta2**self.steps) + self.eps)


def adam():
    return optim.Adam(2e-3)


def sgd():
    return optim.SGD(8.0)


# name: (label, embedding size, optimizer, largest gradient norm)
RUNS = {
    "embedding": ("embedding 64, Adam, clip 1", 64, adam, 1.0),
    "one-hot": ("one-hot, Adam, clip 1", 0, adam, 1.0),
    "no-clip": ("embedding 64, Adam, no clipping", 64, adam, None),
    "restarted": ("embedding 64, moments restarted, clip 1", 64, lambda: RestartedAdam(2e-3), 1.0),
    "rootless": ("embedding 64, root forgotten, clip 1", 64, lambda: RootlessAdam(2e-3), 1.0),
    "sgd": ("embedding 64, SGD, clip 1", 64, sgd, 1.0),
    "sgd-no-clip": ("embedding 64, SGD, no clipping", 64, sgd, None),
}
PICTURES = {
    "input": ("One-hot against an embedding", ["embedding", "one-hot"]),
    "adam": ("Adam and two slips", ["embedding", "restarted", "rootless"]),
    "clipping": ("With and without clipping", ["embedding", "no-clip", "sgd", "sgd-no-clip"]),
}


def train(name, seed, folder, text, valid, vocabulary):
    """Make one run, or what is left of it."""
    _, embedding, optimizer, clip = RUNS[name]
    model = LanguageModel(vocabulary, embedding_dim=embedding, hidden_size=512, seed=seed)
    trainer = Trainer(
        model,
        optimizer(),
        TextStream(text, 64, 100),
        folder,
        max_norm=clip,
        evaluate=lambda: model.bits_per_character(valid),
        metric="valid_bpc",
        evaluate_every=50,
    )
    trainer.resume()
    try:
        trainer.train(steps=STEPS)
    except Diverged as error:
        (folder / "diverged.txt").write_text(f"{error}\n")
    if trainer.stopped == "interrupted":
        raise SystemExit(f"interrupted: {folder}")


def summary(runs: Path) -> dict:
    """Bits per character of every finished run, with mean and spread."""
    out = {}
    for name, (label, *_) in RUNS.items():
        folders = [runs / f"{name}-{seed}" for seed in SEEDS]
        folders = [f for f in folders if (f / "history.jsonl").exists()]
        if not folders:
            continue
        bits, ends = [], []
        for folder in folders:
            lines = read_history(folder)
            last = [line["valid_bpc"] for line in lines if "valid_bpc" in line]
            bits.append(round(last[-1], 4) if last else math.inf)
            ends.append(lines[-1]["step"])
        out[name] = {
            "label": label,
            "seeds": list(SEEDS[: len(bits)]),
            "steps": ends,
            "valid_bpc": bits,
            "mean": round(statistics.mean(bits), 3),
            "spread": round(statistics.stdev(bits), 3) if len(bits) > 1 else None,
        }
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    set_num_threads(arguments.threads)
    text = read_text(arguments.train)
    vocabulary = Vocabulary.of(text, min_count=100)
    ids = vocabulary.encode(text)
    valid = vocabulary.encode(read_text(arguments.valid)[:200_000])
    for seed in SEEDS:
        for name in arguments.only:
            folder = arguments.runs / f"{name}-{seed}"
            if not (folder / "weights.safetensors").exists() or not (folder / "done").exists():
                train(name, seed, folder, ids, valid, vocabulary)
                (folder / "done").touch()
            print(name, seed, flush=True)
    results = summary(arguments.runs)
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, (title, members) in PICTURES.items():
        shown = {RUNS[m][0]: arguments.runs / f"{m}-0" for m in members if m in results}
        if shown:
            plot_runs(shown, DOCS / f"{name}.png", title=title)
    plot_runs(
        {RUNS["embedding"][0]: arguments.runs / "embedding-0"},
        DOCS / "curve.png",
        title="One run: each batch, smoothed, evaluations",
    )


if __name__ == "__main__":
    main()
