"""Measures what makes a named-entity tagger learn: the runs and plots of docs/tagging.md.

    python benchmarks/tagging.py --bc5cdr FOLDER --wnut17 FOLDER --vectors VECTORS --runs RUNS
                                 [--only NAME ...]

The folders hold the two corpora as published (see docs/tagging.md). Each run is a folder in RUNS;
finished runs are skipped, interrupted ones are resumed.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from report import put_between

from fastrnn.data.sentences import read_sentences
from fastrnn.models import Tagger
from fastrnn.plots import plot_runs, read_history
from fastrnn.runtime.threads import set_num_threads

DOCS = Path(__file__).parents[1] / "docs" / "tagging"
SEEDS = (0, 1, 2)
FILES = {
    "bc5cdr": ("train.tsv", "devel.tsv", "test.tsv"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
}
LONGEST = 154  # length that sentences are padded to in the padded runs

ONE = {"batch_size": 1, "optimizer": "sgd", "lr": 0.1, "max_norm": None, "fine_tune": False}
CHARS, CRF, MEAN = {"char_hidden": 25}, {"crf": True}, {"unknown": "mean"}

# name: (corpus, label, parameters of Tagger, change to the data)
RUNS = {
    "tagger": ("bc5cdr", "`Tagger()`: Adam 3e-3, dropout of the input 0.25", {}, ""),
    "slow": ("bc5cdr", "Adam 1e-3, no dropout of the input",
             {"lr": 1e-3, "input_dropout": 0.0}, ""),
    "iob2": ("bc5cdr", "IOB2 inside instead of BIOES", {"scheme": "IOB2"}, ""),
    "slow-iob2": ("bc5cdr", "Adam 1e-3, no dropout of the input, IOB2 inside",
                  {"lr": 1e-3, "input_dropout": 0.0, "scheme": "IOB2"}, ""),
    "crf": ("bc5cdr", "with a CRF", CRF, ""),
    "chars": ("bc5cdr", "with characters", CHARS, ""),
    "chars-crf": ("bc5cdr", "with characters and a CRF", CHARS | CRF, ""),
    "one-vector": ("bc5cdr", "one vector for all unknown words", MEAN, ""),
    "frozen": ("bc5cdr", "vectors not trained", {"fine_tune": False}, ""),
    "frozen-one-vector": ("bc5cdr", "vectors not trained, one for all unknown words",
                          {"fine_tune": False} | MEAN, ""),
    "padded": ("bc5cdr", f"padded to {LONGEST}, padding learnt as O", {}, "padded"),
    "one": ("bc5cdr", "one sentence at a time, SGD 0.1", ONE | {"epochs": 3}, ""),
    "one-padded": ("bc5cdr", f"the same, padded to {LONGEST}, padding learnt as O",
                   ONE | {"epochs": 3}, "padded"),
    "wnut": ("wnut17", "`Tagger()`", {}, ""),
    "wnut-crf": ("wnut17", "with a CRF", CRF, ""),
    "wnut-chars": ("wnut17", "with characters", CHARS, ""),
    "wnut-chars-crf": ("wnut17", "with characters and a CRF", CHARS | CRF, ""),
}  # fmt: skip
PICTURES = {
    "batches": ("One sentence at a time, and 32 of like length", ["one", "tagger"], "seconds"),
    "masking": ("Padding learnt as O, and no padding", ["padded", "tagger"], "step"),
    "curve": ("Each batch, and each epoch", ["tagger"], "step"),
    "unknown": ("Unknown words", ["frozen-one-vector", "frozen"], "step"),
}


def read(folder: Path, corpus: str):
    """``(X, y)`` of the training, development and test sets."""
    parts = [list(read_sentences(folder / name)) for name in FILES[corpus]]
    return [([s.tokens for s in part], [s.tags for s in part]) for part in parts]


def padded(X, y):
    """Pad every sentence to `LONGEST` with tokens whose tag is O."""
    missing = [max(0, LONGEST - len(x)) for x in X]
    return (
        [x + ["<pad>"] * n for x, n in zip(X, missing, strict=True)],
        [t + ["O"] * n for t, n in zip(y, missing, strict=True)],
    )


def train(name, seed, folder, corpus, vectors):
    """Do one run, or the rest of an interrupted one, and score it."""
    _, _, options, change = RUNS[name]
    (X, y), dev, test = corpus
    if change == "padded":
        X, y = padded(X, y)
    model = Tagger(vectors, seed=seed, **options)
    model.fit(X, y, dev=dev, run=folder, resume=True)
    if model.trainer_.stopped == "interrupted":
        raise SystemExit(f"interrupted: {folder}")
    scores = model.evaluate(*test)
    facts = {"test_f1": 100 * scores.micro.f1, "valid_f1": model.trainer_.best}
    (folder / "scores.json").write_text(json.dumps(facts) + "\n")


def summary(runs: Path) -> dict:
    """F1 of every kind of run whose seeds are all finished, with mean and spread."""
    out = {}
    for name, (corpus, label, options, _) in RUNS.items():
        files = [runs / f"{name}-{seed}" / "scores.json" for seed in SEEDS]
        if not all(f.exists() for f in files):
            continue
        scores = [json.loads(f.read_text()) for f in files]
        history = read_history(files[0].parent)
        loss = np.diff([line["loss"] for line in history])
        out[name] = {
            "corpus": corpus, "label": label, "epochs": options.get("epochs", 10),
            "test_f1": [round(s["test_f1"], 2) for s in scores],
            "valid_f1": [round(s["valid_f1"], 2) for s in scores],
            "mean": round(statistics.mean(s["test_f1"] for s in scores), 2),
            "spread": round(statistics.stdev(s["test_f1"] for s in scores), 2),
            # Mean change of the loss from batch to batch, in the second half of the run.
            "jump": round(float(np.abs(loss[len(loss) // 2 :]).mean()), 4),
            "epoch_loss": [round(h["epoch_loss"], 4) for h in history if "epoch_loss" in h],
        }  # fmt: skip
    return out


def table(results: dict, corpus: str) -> str:
    """Markdown, one line per kind of run."""
    lines = [
        f"| entity F1 on the test set | epochs | seeds {', '.join(map(str, SEEDS))} | mean | "
        "standard deviation |",
        "|---|--:|---|--:|--:|",
    ]
    for run in results.values():
        if run["corpus"] == corpus:
            seeds = ", ".join(f"{f:.2f}" for f in run["test_f1"])
            lines.append(
                f"| {run['label']} | {run['epochs']} | {seeds} | {run['mean']:.2f} | "
                f"{run['spread']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for corpus in FILES:
        parser.add_argument(f"--{corpus}", type=Path)
    parser.add_argument("--vectors", default="glove")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    set_num_threads(arguments.threads)
    folders = {c: getattr(arguments, c) for c in FILES}
    corpora = {c: read(folder, c) for c, folder in folders.items() if folder}
    for name in arguments.only:
        for seed in SEEDS:
            folder = arguments.runs / f"{name}-{seed}"
            if RUNS[name][0] in corpora and not (folder / "scores.json").exists():
                train(name, seed, folder, corpora[RUNS[name][0]], arguments.vectors)
                print(folder.name, (folder / "scores.json").read_text().strip(), flush=True)
    results = summary(arguments.runs)
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for corpus in FILES:
        marks = f"<!-- {corpus}: generated by benchmarks/tagging.py -->", f"<!-- /{corpus} -->"
        put_between(DOCS.with_suffix(".md"), marks, table(results, corpus))
    for name, (title, members, against) in PICTURES.items():
        shown = {RUNS[m][1].replace("`", ""): arguments.runs / f"{m}-0" for m in members
                 if m in results}  # fmt: skip
        if len(shown) == len(members):
            plot_runs(shown, DOCS / f"{name}.png", title=title, against=against)


if __name__ == "__main__":
    main()
