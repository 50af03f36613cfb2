"""Markdown tables and plots of measurements, each a dict as returned by `timing.measure`."""

import contextlib
import platform
import re
from collections.abc import Iterable
from itertools import groupby
from math import exp, log, nan
from pathlib import Path

from fastrnn.pictures import COLOURS, INK, Picture

PEERS = ("torch", "onnxruntime", "jax", "keras")


def duration(seconds: float) -> str:
    """Seconds as three significant digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 1000 else f"{seconds:.0f} s"
    raise AssertionError


def peak_share(row: dict) -> float | None:
    """Fraction of the run's multiply-add peak, None for a case without multiply-adds."""
    return row["flops"] / row["ours"] / row["peak_flops"] if row["flops"] else None


def ratio(row: dict, peer: str) -> float | None:
    """A peer's time over ours."""
    seconds = row["peers"].get(peer)
    return seconds / row["ours"] if seconds else None


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(v) for v in values]
    return exp(sum(logs) / len(logs))


def groups(rows: list[dict]):
    for name, members in groupby(rows, key=lambda row: row["group"]):
        yield name, list(members)


def _is_layers(name: str) -> bool:
    """Whether a group's cases are similar enough to average."""
    return any(word in name for word in ("inference", "training, (T", "in bf16, (T", "ragged"))


def table(rows: list[dict]) -> str:
    """One table per group: medians, each peer's time and its ratio to ours, share of the peak."""
    out = []
    for name, members in groups(rows):
        peers = list(dict.fromkeys(p for row in members for p in row["peers"]))
        calls = " a step" if members[0]["calls"] > 1 else ""
        head = ["fastrnn" + calls, *(title for p in peers for title in (p, "ratio"))]
        if members[0]["flops"]:
            head.append("of the FMA peak")
        lines = ["| | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
        for row in members:
            cells = [duration(row["ours"] / row["calls"])]
            for peer in peers:
                seconds = row["peers"].get(peer)
                cells += (
                    [duration(seconds / row["calls"]), f"{seconds / row['ours']:.2f}"]
                    if (seconds)
                    else ["", ""]
                )
            share = peak_share(row)
            if members[0]["flops"]:
                cells.append(f"{share:.0%}" if share else "")
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        if _is_layers(name) and len(members) > 2:
            lines += _means(members, peers, len(head))
        out += [f"**{name}**", "", *lines, ""]
    return "\n".join(out).rstrip()


def _counted(members: list[dict]) -> list[dict]:
    """The cases that means are taken over: all but those with T = 1."""
    return [row for row in members if not row["name"].startswith("(1, ")]


def _means(members, peers, columns) -> list[str]:
    counted, cells = _counted(members), [""]
    for peer in peers:
        found = [r for row in counted if (r := ratio(row, peer))]
        cells += ["", f"*{geometric_mean(found):.2f}*" if len(found) == len(counted) else ""]
    cells += [""] * (columns - len(cells))
    return ["| *geometric mean, T > 1* | " + " | ".join(cells) + " |"]


def summary(rows: list[dict]) -> str:
    """One table: for groups of similar cases the geometric mean of the ratios (and the worst),
    for others the ratio of each case. The last column is the limit set by the machine: the ratio
    to torch if ours ran at the multiply-add peak."""
    peers = list(dict.fromkeys(p.split(",")[0].split(" ")[0] for row in rows for p in row["peers"]))
    peers = [p for p in peers if p in PEERS]
    lines = [
        f"| | {' | '.join(peers)} | the best of each case | of the FMA peak "
        "| torch, if all of the peak |",
        "|---|" + "--:|" * (len(peers) + 3),
    ]
    for name, members in groups(rows):
        if "grows" in name:
            continue
        counted = _counted(members) if _is_layers(name) else []
        parts = [counted] if counted else []
        for part in [*parts, *([row] for row in members if row not in counted)]:
            if len(part) > 1:
                label = f"{name.split(',')[0]}, {len(part)} shapes"
            else:
                label = f"{name.split(',')[0]}: {part[0]['name']}"
            cells = [_spread([_of_kind(row, peer) for row in part]) for peer in peers]
            cells.append(_spread([_of_kind(row, None) for row in part]))
            shares = [share for row in part if (share := peak_share(row))]
            low_high = f"{min(shares):.0%} - {max(shares):.0%}" if len(shares) > 1 else ""
            cells.append(low_high or (f"{shares[0]:.0%}" if shares else ""))
            cells.append(_spread([_at_peak(row) for row in part]).split(" ")[0])
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of_kind(row: dict, kind: str | None) -> float | None:
    """The ratio to the fastest variant of the framework ``kind``, or of all if None."""
    times = [
        seconds
        for peer, seconds in row["peers"].items()
        if (peer.startswith(kind) if kind else peer.startswith(PEERS))
    ]
    return min(times) / row["ours"] if times else None


def _at_peak(row: dict) -> float | None:
    """The ratio to torch if ours ran at the multiply-add peak."""
    of_torch, share = _of_kind(row, "torch"), peak_share(row)
    return of_torch / share if of_torch and share else None


def _spread(ratios: list[float | None]) -> str:
    found = [r for r in ratios if r]
    if not found or len(found) < len(ratios):
        return ""
    mean = f"{geometric_mean(found):.2f}"
    return mean if len(found) == 1 else f"{mean} (worst {min(found):.2f})"


def cpu_name() -> str:
    """The system's name for this CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def heading(rows: list[dict], cpu: str, date: str) -> str:
    """The paragraph above the tables: machine, date and method."""
    threads = max(row["threads"] for row in rows)
    peaks = [row["peak_flops"] for row in rows if row["threads"] == threads]
    of_one = [row["peak_flops"] for row in rows if row["threads"] == 1]
    plain = min([*peaks, *(threads * peak for peak in of_one)])
    most = max(peaks) / plain
    faster = f" (cases in bf16: {most:.0f} times that)" if most > 1.5 else ""
    return (
        f"{cpu}, {threads} threads, {plain / 1e9:.0f} GF/s float32 "
        f"multiply-add peak measured in the same run, {date}{faster}. Medians of rounds in which "
        "all sides took turns; a ratio is the peer's time over ours. A training case has new "
        "weights at every call and computes the gradient of the input."
    )


def _label(row: dict) -> str:
    return f"{row['group'].split(',')[0]} {row['name']}"


def plot_ratios(rows: list[dict], out: Path) -> None:
    """At a glance: for each group of cases the mean and the range of the ratios to PyTorch and to
    the fastest package of all; to the right of 1x, ours is faster."""
    series = {"PyTorch": "torch", "the fastest of all packages": None}
    shown = {name: members for name, members in glance(rows).items() if members}
    with Picture(7.5, 0.32 * len(shown) + 1.3) as picture:
        axes = picture.figure.subplots()
        for number, (label, kind) in enumerate(series.items()):
            for y, members in enumerate(shown.values()):
                found = [r for row in members if (r := _of_kind(row, kind))]
                if not found:
                    continue
                at, colour = y + 0.16 * (2 * number - 1), COLOURS[number]
                axes.plot([min(found), max(found)], [at, at], color=colour, linewidth=2)
                axes.plot(geometric_mean(found), at, "o", color=colour)
            axes.plot([], [], "o-", color=COLOURS[number], label=label)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.45), max(high, 11))
        ticks = (0.5, 1, 2, 5, 10)
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.set_xlabel("time of the other package over ours: mean and range")
        picture.figure.legend(loc="outside upper center", ncols=2)
        picture.save(out)


# The groups at a glance: a label, and what the names of its cases begin with.
_GLANCE = {
    "LSTM inference": ("LSTM inference",), "GRU inference": ("GRU inference",),
    "RNN inference": ("RNN inference",), "LSTM training": ("LSTM training, (T",),
    "GRU training": ("GRU training, (T",), "RNN training": ("RNN training, (T",),
    "ragged BiLSTM training": ("ragged BiLSTM training, (B",),
    "one step of one sequence": ("one step of one sequence, 1",),
    "training in bf16": (
        "LSTM training in bf16", "GRU training in bf16", "RNN training in bf16",
        "ragged BiLSTM training in bf16",
    ),
    "one step in bf16 or int8": ("one step of one sequence in lower precision",),
    "language model, training": ("language model",), "tagger: BiLSTM, softmax": ("tagger",),
    "fastrnn.torch": ("fastrnn.torch",),
}  # fmt: skip


def glance(rows: list[dict]) -> dict[str, list[dict]]:
    """The cases of each group in `plot_ratios`."""
    return {
        label: [
            row for row in rows
            if row["group"].startswith(starts) and "grows" not in row["group"]
            and _of_kind(row, None)
        ]
        for label, starts in _GLANCE.items()
    }  # fmt: skip


def short(rows: list[dict]) -> str:
    """The table behind `plot_ratios`."""
    lines = [
        "| | cases | PyTorch | the fastest of all packages | of the FMA peak |",
        "|---|--:|--:|--:|--:|",
    ]
    for label, members in glance(rows).items():
        if not members:
            continue
        cells = [str(len(members))]
        for kind in ("torch", None):
            cells.append(_spread([r for row in members if (r := _of_kind(row, kind))]))
        shares = [share for row in members if (share := peak_share(row))]
        cells.append(f"{min(shares):.0%} - {max(shares):.0%}" if shares else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_cases(rows: list[dict], out: Path) -> None:
    """Each package's time over ours, a line for each case."""
    rows = [row for row in rows if "grows" not in row["group"] and row["peers"]]
    with Picture(9, 0.2 * len(rows) + 1.2) as picture:
        axes = picture.figure.subplots()
        shown: set[str] = set()
        for y, row in enumerate(rows):
            for peer, seconds in row["peers"].items():
                kind = next((name for name in PEERS if peer.startswith(name)), "other")
                colour = COLOURS[PEERS.index(kind)] if kind in PEERS else COLOURS[-1]
                label = kind if kind not in shown else None
                shown.add(kind)
                axes.plot(seconds / row["ours"], y, "o", color=colour, label=label)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.grid(axis="x")
        axes.set_xlabel("time of the other package over ours")
        axes.legend()
        picture.save(out)


def plot_peak(rows: list[dict], out: Path) -> None:
    """Share of the multiply-add peak."""
    rows = [row for row in rows if row["flops"] and "grows" not in row["group"]]
    with Picture(9, 0.2 * len(rows) + 1.2) as picture:
        axes = picture.figure.subplots()
        axes.barh([_label(row) for row in rows], [100 * (peak_share(row) or 0) for row in rows])
        axes.tick_params(axis="y", labelsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="x")
        axes.set_xlabel("% of the multiply-add peak of the run, for the precision of the case")
        picture.save(out)


def plot_growth(rows: list[dict], out: Path) -> None:
    """Time as T, B and H grow, ours and torch's."""
    grown = [(name, members) for name, members in groups(rows) if "grows" in name]
    if not grown:
        return
    with Picture(3.4 * len(grown), 3.2) as picture:
        axes = picture.figure.subplots(1, len(grown), squeeze=False)
        for ax, (name, members) in zip(axes[0], grown, strict=True):
            _draw_growth(ax, name, members)
        picture.save(out)


def _draw_growth(ax, name: str, members: list[dict]) -> None:
    letter = re.search(r"as (\w) grows", name)
    assert letter
    place = {"T": 0, "B": 1, "H": 3}[letter.group(1)]
    x = [int(row["name"].strip("()").split(",")[place]) for row in members]
    ax.plot(x, [row["ours"] * 1e3 for row in members], "o-", label="fastrnn")
    for peer in dict.fromkeys(p for row in members for p in row["peers"]):
        times = [row["peers"].get(peer, nan) * 1e3 for row in members]
        ax.plot(x, times, "o-", label=peer)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel(letter.group(1))
    ax.set_ylabel("ms, training")
    ax.grid()
    ax.legend()
