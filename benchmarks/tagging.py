"""Measures what makes a named-entity tagger learn: the runs and plots of docs/tagging.md.

    python benchmarks/tagging.py --bc5cdr FOLDER --wnut17 FOLDER --vectors VECTORS --runs RUNS
                                 [--only NAME ...] [--speed]

The folders hold the two corpora as published (see docs/tagging.md). Each run is a folder in RUNS;
finished runs are skipped, interrupted ones are resumed.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from report import put_between

from fastrnn.bench.report import cpu_name
from fastrnn.data.sentences import read_sentences
from fastrnn.models import Tagger, TaggerEnsemble
from fastrnn.plots import plot_runs, read_history
from fastrnn.runtime.threads import set_num_threads

DOCS = Path(__file__).parents[1] / "docs" / "tagging"
SEEDS = (0, 1, 2)
FILES = {
    "bc5cdr": ("train.tsv", "devel.tsv", "test.tsv"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
}
LONGEST = 154  # length that sentences are padded to in the padded runs

PLAIN = {"char_filters": 0, "crf": False, "unknown": "normal"}
ONE = PLAIN | {
    "batch_size": 1, "optimizer": "sgd", "lr": 0.1, "max_norm": None, "fine_tune": False,
    "epochs": 3,
}  # fmt: skip
LSTM = {"char_filters": 0, "char_hidden": 25}

# name: (corpus, label, parameters of Tagger, change to the data)
RUNS = {
    "tagger": ("bc5cdr", "`Tagger()`", {}, ""),
    "train-dev": ("bc5cdr", "also trained on the development set, last epoch", {}, "dev"),
    "no-crf": ("bc5cdr", "softmax, no CRF", {"crf": False}, ""),
    "no-chars": ("bc5cdr", "no characters", {"char_filters": 0}, ""),
    "lstm": ("bc5cdr", "BiLSTM of 2 x 25 units over the characters, no CNN", LSTM, ""),
    "both": ("bc5cdr", "BiLSTM and CNN over the characters", {"char_hidden": 25}, ""),
    "normal": ("bc5cdr", "random vectors for unknown words", {"unknown": "normal"}, ""),
    "frozen": ("bc5cdr", "vectors not trained", {"fine_tune": False}, ""),
    "cosine": ("bc5cdr", "cosine schedule with warm-up",
               {"schedule": "cosine", "warmup_ratio": 0.1}, ""),
    "long": ("bc5cdr", "20 epochs", {"epochs": 20}, ""),
    "long-cosine": ("bc5cdr", "20 epochs, cosine schedule with warm-up",
                    {"epochs": 20, "schedule": "cosine", "warmup_ratio": 0.1}, ""),
    "dropout": ("bc5cdr", "dropout of the input 0.5, not 0.25", {"input_dropout": 0.5}, ""),
    "slow": ("bc5cdr", "Adam 1e-3, no dropout of the input",
             {"lr": 1e-3, "input_dropout": 0.0}, ""),
    "iob2": ("bc5cdr", "IOB2 inside, not BIOES", {"scheme": "IOB2"}, ""),
    "plain": ("bc5cdr", "plain: no characters, softmax, random vectors", PLAIN, ""),
    "plain-mean": ("bc5cdr", "plain, one vector for all unknown words",
                   PLAIN | {"unknown": "mean"}, ""),
    "plain-frozen": ("bc5cdr", "plain, vectors not trained", PLAIN | {"fine_tune": False}, ""),
    "plain-frozen-mean": ("bc5cdr", "plain, vectors not trained, one for all unknown words",
                          PLAIN | {"fine_tune": False, "unknown": "mean"}, ""),
    "padded": ("bc5cdr", f"plain, padded to {LONGEST}, padding learnt as O", PLAIN, "padded"),
    "one": ("bc5cdr", "plain, one sentence at a time, SGD 0.1", ONE, ""),
    "one-padded": ("bc5cdr", f"the same, padded to {LONGEST}, padding learnt as O", ONE, "padded"),
    "wnut": ("wnut17", "`Tagger()`", {}, ""),
    "wnut-no-crf": ("wnut17", "softmax, no CRF", {"crf": False}, ""),
    "wnut-no-chars": ("wnut17", "no characters", {"char_filters": 0}, ""),
    "wnut-lstm": ("wnut17", "BiLSTM of 2 x 25 units over the characters, no CNN", LSTM, ""),
    "wnut-cosine": ("wnut17", "cosine schedule with warm-up",
                    {"schedule": "cosine", "warmup_ratio": 0.1}, ""),
    "wnut-plain": ("wnut17", "plain: no characters, softmax, random vectors", PLAIN, ""),
}  # fmt: skip
PICTURES = {
    "batches": ("One sentence at a time, and 32 of like length", ["one", "plain"], "seconds"),
    "masking": ("Padding learnt as O, and no padding", ["padded", "plain"], "step"),
    "curve": ("Each batch, and each epoch", ["tagger"], "step"),
    "unknown": ("Unknown words", ["plain-frozen-mean", "plain-frozen"], "step"),
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
    if change == "dev":
        (X, y), dev = (X + dev[0], y + dev[1]), None
    model = Tagger(vectors, seed=seed, **options)
    model.fit(X, y, dev=dev, run=folder, resume=True)
    if model.trainer_.stopped == "interrupted":
        raise SystemExit(f"interrupted: {folder}")
    scores = model.evaluate(*test)
    facts = {"test_f1": 100 * scores.micro.f1, "valid_f1": model.trainer_.best}
    (folder / "scores.json").write_text(json.dumps(facts) + "\n")


def ensemble(name, runs: Path, test, vectors) -> float:
    """F1 of the finished runs of all seeds as one."""
    folders = [runs / f"{name}-{seed}" for seed in SEEDS]
    return 100 * TaggerEnsemble.load(folders, vectors=vectors).score(*test)


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
            "valid_f1": [s["valid_f1"] and round(s["valid_f1"], 2) for s in scores],
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
            if "ensemble" in run:
                lines.append(f"| the three as an ensemble | | | {run['ensemble']:.2f} | |")
    return "\n".join(lines) + "\n"


def short(results: dict) -> str:
    """The table of docs/results.md."""
    lines = ["| corpus | | F1 | seconds per epoch |", "|---|---|--:|--:|"]
    for name in ("plain", "tagger", "lstm", "train-dev", "wnut-plain", "wnut", "wnut-lstm"):
        if name not in results:
            continue
        run = results[name]
        corpus = {"bc5cdr": "BC5CDR", "wnut17": "WNUT-17"}[run["corpus"]]
        score = f"{run['mean']:.2f} +- {run['spread']:.2f}"
        seconds = f"{run['epoch_seconds']:.2f}" if "epoch_seconds" in run else ""
        lines.append(f"| {corpus} | {run['label']} | {score} | {seconds} |")
        if "ensemble" in run:
            lines.append(f"| {corpus} | an ensemble of its three seeds | {run['ensemble']:.2f} | |")
    cpu = next((run["cpu"] for run in results.values() if "cpu" in run), "")
    return "\n".join(lines) + (f"\n\nEpochs on {cpu}.\n" if cpu else "\n")


def speed(corpora: dict, vectors: str, threads: int, rounds: int = 5) -> dict:
    """Seconds of an epoch of the main kinds of runs, in turns: the medians."""
    names = [n for n in ("plain", "tagger", "lstm", "wnut-plain", "wnut", "wnut-lstm")
             if RUNS[n][0] in corpora]  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            corpus, _, options, _ = RUNS[name]
            model = Tagger(vectors, **options | {"epochs": 1})
            model.fit(*corpora[corpus][0], progress=False)
            seconds[name].append(model.history_[-1]["seconds"])
    cpu = f"{cpu_name()}, {threads} threads"
    return {n: {"epoch_seconds": round(statistics.median(s), 3), "cpu": cpu}
            for n, s in seconds.items()}  # fmt: skip


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
    parser.add_argument("--speed", action="store_true", help="time epochs, train nothing")
    arguments = parser.parse_args()
    set_num_threads(arguments.threads)
    folders = {c: getattr(arguments, c) for c in FILES}
    corpora = {c: read(folder, c) for c, folder in folders.items() if folder}
    for name in arguments.only if not arguments.speed else ():
        for seed in SEEDS:
            folder = arguments.runs / f"{name}-{seed}"
            if RUNS[name][0] in corpora and not (folder / "scores.json").exists():
                train(name, seed, folder, corpora[RUNS[name][0]], arguments.vectors)
                print(folder.name, (folder / "scores.json").read_text().strip(), flush=True)
    saved = DOCS / "results.json"
    before = json.loads(saved.read_text()) if saved.exists() else {}
    found = summary(arguments.runs)
    results = {n: found.get(n) or before[n] for n in RUNS if n in found or n in before}
    timed = {n: {k: run[k] for k in ("epoch_seconds", "cpu") if k in run}
             for n, run in before.items()}  # fmt: skip
    if arguments.speed:
        timed = speed(corpora, arguments.vectors, arguments.threads)
    for name in results:
        results[name] |= timed.get(name, {})
    for name in ("tagger", "wnut"):
        folder = arguments.runs / f"{name}-0"
        if name in results and RUNS[name][0] in corpora and folder.exists():
            test = corpora[RUNS[name][0]][2]
            results[name]["ensemble"] = round(
                ensemble(name, arguments.runs, test, arguments.vectors), 2
            )
    DOCS.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(results, indent=1) + "\n")
    for corpus in FILES:
        marks = f"<!-- {corpus}: generated by benchmarks/tagging.py -->", f"<!-- /{corpus} -->"
        put_between(DOCS.with_suffix(".md"), marks, table(results, corpus))
    marks = "<!-- taggers: generated by benchmarks/tagging.py -->", "<!-- /taggers -->"
    put_between(DOCS.with_name("results.md"), marks, short(results))
    for name, (title, members, against) in PICTURES.items():
        shown = {RUNS[m][1].replace("`", ""): arguments.runs / f"{m}-0" for m in members
                 if m in results}  # fmt: skip
        if len(shown) == len(members):
            plot_runs(shown, DOCS / f"{name}.svg", title=title, against=against)


if __name__ == "__main__":
    main()
