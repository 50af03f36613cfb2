"""Learning curves of one or several runs in one picture."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastrnn.extras import install_hint

_LOSSES = ("valid_loss", "valid_bpc")  # metrics that are drawn on the axis of the loss


def read_history(run) -> list[dict]:
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


def plot_runs(
    runs: Sequence | Mapping, out, *, against: str = "step", title: str | None = None
) -> Path:
    """Plot the curves of runs: per-batch loss (faint), smoothed loss, and evaluations (points).

    Parameters
    ----------
    runs : sequence of folders, or mapping of label to folder
    out : path
        The picture, ``.png``, ``.svg`` or ``.pdf``.
    against : {"step", "seconds"}
        The horizontal axis.
    title : str, optional

    Returns
    -------
    out : Path

    Raises
    ------
    ImportError
        matplotlib is missing; the message says how to get it.
    """
    if against not in ("step", "seconds"):
        raise ValueError(f"against must be 'step' or 'seconds', got {against!r}")
    if not isinstance(runs, Mapping):
        names = [Path(run).name for run in runs]
        runs = {
            str(run) if not name or names.count(name) > 1 else name: run
            for name, run in zip(names, runs, strict=True)
        }
    histories = {label: read_history(run) for label, run in runs.items()}
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"plots need matplotlib: {install_hint('plot')}") from None

    # A loss in nats is drawn in bits where the evaluation is in bits.
    bits = any("valid_bpc" in line for lines in histories.values() for line in lines)
    unit = math.log(2) if bits else 1.0
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tops, lows = [], []
    other = None  # a second axis for a metric other than a loss, such as F1
    for number, (label, lines) in enumerate(histories.items()):
        colour = f"C{number}"
        x = [line[against] for line in lines]
        loss = np.array([line["loss"] for line in lines]) / unit
        smoothed = np.array([line["smoothed"] for line in lines]) / unit
        axes.plot(x, loss, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, smoothed, color=colour, linewidth=1.8, label=label)
        metric = [(a, v, k) for a, line in zip(x, lines, strict=True) for k, v in line.items()
                  if k.startswith("valid_")]  # fmt: skip
        if metric and metric[0][2] in _LOSSES:
            at, values, _ = zip(*metric, strict=True)
            axes.plot(at, values, "o", color=colour, markeredgecolor="white")
            lows.append(min(values))
        elif metric:
            at, values, _ = zip(*metric, strict=True)
            if other is None:
                other = axes.twinx()
                other.set_ylabel(f"{metric[0][2].removeprefix('valid_').upper()}, dots (right)")
            other.plot(at, values, "o--", color=colour, markeredgecolor="white", linewidth=0.8)
        means = [(a, line["epoch_loss"] / unit) for a, line in zip(x, lines, strict=True)
                 if "epoch_loss" in line]  # fmt: skip
        if means:
            axes.plot(*zip(*means, strict=True), "D", color=colour, markerfacecolor="none")
        finite = smoothed[np.isfinite(smoothed)]
        tops.append(finite[min(len(finite) - 1, 5)])
        lows.append(finite.min())
    # The first batches, or a run that diverges, must not flatten the other curves.
    low, top = min(lows), max(tops)
    if top > 3 * min(tops):
        axes.set_yscale("log")
    else:
        axes.set_ylim(low - 0.06 * (top - low) - 1e-3, top + 0.1 * (top - low) + 1e-3)
    axes.set_xlabel("step" if against == "step" else "seconds of training")
    axes.set_ylabel("bits per character" if bits else "loss")
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.plot([], [], color="grey", alpha=0.3, label="each batch")
    axes.plot([], [], "o", color="grey", label="evaluation")
    if any("epoch_loss" in line for lines in histories.values() for line in lines):
        axes.plot([], [], "D", color="grey", markerfacecolor="none", label="mean of an epoch")
    axes.legend(loc="center right" if other else "best")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out
