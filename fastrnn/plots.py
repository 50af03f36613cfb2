"""Learning curves of one or several runs in one picture."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastrnn import checks
from fastrnn.pictures import COLOURS, Picture
from fastrnn.types import Path as FilePath

_LOSSES = ("valid_loss", "valid_bpc")  # metrics that are drawn on the axis of the loss


def read_history(run: FilePath) -> list[dict]:
    """The lines of ``run/history.jsonl``.

    Raises
    ------
    FileNotFoundError
        The run has no history.
    ValueError
        A line is damaged; the message names the file and the line.
    """
    path = Path(run) / "history.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
            for name in ("step", "seconds", "loss", "smoothed", *line):
                if not math.isfinite(line[name]):
                    raise ValueError(f"{name} is {line[name]}")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {error!r}") from None
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty")
    return lines


def smooth(losses: np.ndarray, window: int = 21) -> np.ndarray:
    """The mean over a window around each batch: unlike a running average, it does not lag.

    Near an end the window is smaller, so that it stays symmetric.
    """
    half = min(window // 2, (len(losses) - 1) // 2)
    out = np.convolve(losses, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="same")
    for side in range(half):
        out[side] = losses[: 2 * side + 1].mean()
        out[-1 - side] = losses[-1 - 2 * side :].mean()
    return out


def plot_runs(
    runs: Sequence | Mapping,
    out: FilePath,
    *,
    against: str = "step",
    title: str | None = None,
    unit: str = "nats",
) -> Path:
    """Plot the curves of runs: per-batch loss (faint), smoothed loss, and evaluations (points).

    A metric that is not a loss, such as F1, has a panel of its own below.

    Parameters
    ----------
    runs : sequence of paths, or mapping of label to path
        Folders with a ``history.jsonl``, labelled with their names.
    out : path
        The image; matplotlib chooses the format from the suffix.
    against : {"step", "seconds"}
        Horizontal axis.
    title : str, optional
    unit : str, default "nats"
        Unit of the loss; the losses of a model that is evaluated in bits are drawn in bits.

    Raises
    ------
    FileNotFoundError, ValueError
        A run has no history, it is damaged, or ``against`` is something else.
    ImportError
        Matplotlib is not installed.
    """
    out = checks.path("out", out)
    checks.choice("against", against, ("step", "seconds"))
    if isinstance(runs, str) or not isinstance(runs, Sequence | Mapping) or not len(runs):
        raise TypeError(f"runs must be a list of paths, at least one; got {checks.short(runs)}")
    if not isinstance(runs, Mapping):
        names = [checks.path("runs", run).name for run in runs]
        runs = {
            str(run) if not name or names.count(name) > 1 else name: run
            for name, run in zip(names, runs, strict=True)
        }
    paths = {str(label): checks.path("runs", run) for label, run in runs.items()}
    histories = {label: read_history(run) for label, run in paths.items()}
    metrics = {label: _metric(lines) for label, lines in histories.items()}
    scores = sorted({name for name in metrics.values() if name and name not in _LOSSES})
    with Picture(8, 4.5 + 2.2 * bool(scores)) as picture:
        _draw(picture.figure, histories, metrics, scores, against, title, unit)
        picture.save(out)
    return out


def _draw(figure, histories, metrics, scores, against, title, unit) -> None:
    """The curves of `plot_runs`."""
    bits = "valid_bpc" in metrics.values()
    # A loss in nats is drawn in bits where the evaluation is in bits.
    scale = 1 / math.log(2) if bits else 1.0
    panels = figure.subplots(
        1 + bool(scores), sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + bool(scores)]
    )[:, 0]
    axes = panels[0]
    tops, lows, has_means = [], [], False
    for number, (label, lines) in enumerate(histories.items()):
        colour, metric = f"C{number}", metrics[label]
        x = [line[against] for line in lines]
        loss = scale * np.array([line["loss"] for line in lines])
        smoothed = smooth(loss)
        axes.plot(x, loss, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, smoothed, color=colour, linewidth=1.8, label=label)
        points = [(a, line[metric]) for a, line in zip(x, lines, strict=True) if metric in line]
        if points and metric in _LOSSES:
            axes.plot(*zip(*points, strict=True), "o", color=colour, markeredgecolor="white")
            lows.append(min(value for _, value in points))
        elif points:
            panels[1].plot(*zip(*points, strict=True), "o-", color=colour, markeredgecolor="white")
        means = [(a, scale * line["epoch_loss"]) for a, line in zip(x, lines, strict=True)
                 if "epoch_loss" in line]  # fmt: skip
        if means:
            axes.plot(*zip(*means, strict=True), "D", color=colour, markerfacecolor="none")
            has_means = True
        tops.append(smoothed[min(len(smoothed) // 4, 5)])
        lows.append(smoothed.min())
    # The first batches, or a run that diverges, must not flatten the other curves.
    low, top = min(lows), max(tops)
    if top > 3 * min(tops):
        axes.set_yscale("log")
    else:
        axes.set_ylim(low - 0.06 * (top - low) - 1e-3, top + 0.1 * (top - low) + 1e-3)
    panels[-1].set_xlabel("step" if against == "step" else "seconds of training")
    axes.set_ylabel("bits per character" if bits else f"loss ({unit})" if unit else "loss")
    if scores:
        named = {"valid_f1": "F1 (percent)"}
        labels = [named.get(name, name.removeprefix("valid_")) for name in scores]
        panels[1].set_ylabel(", ".join(labels))
        if scores == ["valid_perplexity"]:
            panels[1].set_yscale("log")
    if title:
        axes.set_title(title)
    for panel in panels:
        panel.grid()
    axes.plot([], [], color=COLOURS[-1], alpha=0.3, label="each batch")
    if any(name in _LOSSES for name in metrics.values()):
        axes.plot([], [], "o", color=COLOURS[-1], label="evaluation")
    if has_means:
        axes.plot([], [], "D", color=COLOURS[-1], markerfacecolor="none", label="mean of an epoch")
    axes.legend(loc="best")


def _metric(lines: list[dict]) -> str:
    """The name of the metric of a run, or ""."""
    known = {"step", "epoch", "seconds", "loss", "smoothed", "grad_norm", "lr", "items"}
    names = {name for line in lines for name in line} - known - {"epoch_loss"}
    return min(names, default="")
