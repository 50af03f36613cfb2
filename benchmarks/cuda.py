"""Checks the CUDA kernels on a GPU against the reference, then times them against cuDNN.

    python -m benchmarks.cuda [--out benchmarks/results/cuda.json] [--rounds 30]

The time loops, projections and gradients are first compared with the reference at shapes that
tend to break kernels (the tests do so for every kernel, see tests/kernels/cuda). Then our layers
and torch's (which use cuDNN) are timed in turn on device arrays with CUDA events: in float32 (with
torch's TF32 off) and, for the LSTM, tf32 (on) and bfloat16, with torch's float16 beside it. Writes
JSON and, next to it, a table of microseconds per step.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.bench.cases import DENSE
from fastrnn.kernels.cuda import memory, weights
from fastrnn.layers import GRU, LSTM, RNN

CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
# Limit of the difference from the reference, relative to its largest value or to 1 if larger.
GRADES = {"float32": 5e-5, "tf32": 4e-3, "bf16": 4e-2}
# Steps, sequences, inputs, units, and whether sequences have different lengths.
CHECKED = [
    (1, 1, 1, 1, False), (7, 1, 5, 64, False), (5, 9, 3, 33, True), (12, 33, 40, 100, True),
    (9, 17, 20, 256, True), (6, 70, 30, 300, False), (4, 5, 8, 650, True), (3, 4, 6, 1500, False),
]  # fmt: skip


def _arrays(layer, steps, batch, seed=0):
    rng = np.random.default_rng(seed)
    width = layer.directions * layer.hidden_size
    x = rng.standard_normal((steps, batch, layer.input_size), np.float32)
    return x, rng.standard_normal((steps, batch, width), np.float32)


def _everything(layer, x, dy, lengths) -> dict:
    y, state, tape = layer.forward(x, lengths=lengths)
    dx, dstate, grads = layer.backward(tape, dy)
    states = {f"{k}_{i}": s for k, v in (("n", state), ("0", dstate)) for i, s in
              enumerate(v if isinstance(v, tuple) else (v,))}  # fmt: skip
    return {"y": y, "dx": dx, **states, **grads}


def check() -> list[dict]:
    """The worst difference of each kernel from the reference."""
    rows = []
    for name, cell in CELLS.items():
        ways = [("grid", "float32")]
        if name == "LSTM" and memory.device().compute_capability >= (9, 0):
            ways += [("cluster", precision) for precision in GRADES]
        for steps, batch, inputs, units, ragged in CHECKED:
            ours = cell(inputs, units, bidirectional=True, backend="cuda", seed=0)
            oracle = cell(inputs, units, bidirectional=True, dtype="float64", backend="reference")
            oracle.load_state_dict(ours.state_dict())
            lengths = np.random.default_rng(1).integers(0, steps + 1, batch) if ragged else None
            x, dy = _arrays(ours, steps, batch)
            wanted = _everything(oracle, x, dy, lengths)
            for loop, precision in ways:
                weights.loop = loop
                ours.precision = precision
                got = _everything(ours, x, dy, lengths)
                each = [
                    np.abs(got[k] - v).max() / max(1, np.abs(v).max()) for k, v in wanted.items()
                ]
                worst = np.max(each)  # NaN if any of them is
                ran = "cluster" if ours._weights()[0].plan() else "grid"
                shape = steps, batch, inputs, units
                rows.append({
                    "cell": name, "loop": ran, "precision": precision, "shape": shape,
                    "ragged": ragged, "error": float(worst), "ok": bool(worst < GRADES[precision]),
                })  # fmt: skip
                print(rows[-1], flush=True)
    weights.loop = None
    return rows


class Clock:
    """Measures the time between two points of the stream."""

    def __init__(self):
        self.events = [memory.call("cuEventCreate", 0) for _ in range(2)]

    def time(self, function) -> float:
        """Seconds that the device takes for the work that ``function`` queues."""
        stream = memory.stream()
        memory.call("cuEventRecord", self.events[0], stream)
        function()
        memory.call("cuEventRecord", self.events[1], stream)
        memory.call("cuEventSynchronize", self.events[1])
        return memory.call("cuEventElapsedTime", *self.events) * 1e-3


def _ours(cell, shape, precision) -> dict:
    """Inference and training of one layer on device arrays."""
    steps, batch, inputs, units = shape
    layer = cell(inputs, units, precision=precision, backend="cuda", seed=0)
    x, dy = map(memory.to_device, _arrays(layer, steps, batch))

    def train():
        layer.parameters.writing_on_device(memory.to_device)  # as after an optimizer's step
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return {"inference": lambda: layer(x), "training": train}


def _torch(cell, shape, precision) -> dict:
    """The same in torch, which uses cuDNN."""
    import torch

    steps, batch, inputs, units = shape
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    options = {"device": "cuda", "dtype": kinds.get(precision, torch.float32)}
    layer = getattr(torch.nn, cell.__name__)(inputs, units).to(**options)
    x = torch.randn(steps, batch, inputs, **options, requires_grad=True)
    dy = torch.randn(steps, batch, units, **options)

    def inference():
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.no_grad():
            layer(x)

    def train():
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x)[0].backward(dy)

    return {"inference": inference, "training": train}


def _has_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def timings(rounds: int) -> list[dict]:
    """Medians of ours and cuDNN's, timed in turn, over cells, shapes and precisions."""
    clock, rows, peer = Clock(), [], _has_torch()
    for name, cell in CELLS.items():
        for shape in DENSE:
            for precision in GRADES if name == "LSTM" else ("float32",):
                sides = {"fastrnn": _ours(cell, shape, precision)}
                if peer:
                    sides["cuDNN"] = _torch(cell, shape, precision)
                if peer and precision == "bf16":
                    sides["cuDNN fp16"] = _torch(cell, shape, "fp16")
                for kind in ("inference", "training"):
                    times: dict[str, list[float]] = {side: [] for side in sides}
                    for turn in range(rounds + 3):
                        for side, functions in sides.items():
                            seconds = clock.time(functions[kind])
                            if turn >= 3:  # the turns before compile and warm up
                                times[side].append(seconds)
                    rows.append({
                        "cell": name, "shape": shape, "precision": precision, "kind": kind,
                        "seconds": {side: statistics.median(t) for side, t in times.items()},
                    })  # fmt: skip
                    print(rows[-1], flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Microseconds per step, and cuDNN's time over ours."""
    sides = list(dict.fromkeys(side for row in rows for side in row["seconds"]))
    lines = [
        "| | (T, B, I, H) | precision | "
        + " | ".join(f"{s}, us a step" for s in sides)
        + " | ratio |",
        "|---|---|---|" + "--:|" * (len(sides) + 1),
    ]
    for row in rows:
        steps, seconds = row["shape"][0], row["seconds"]
        cells = [f"{seconds[s] / steps * 1e6:.2f}" if s in seconds else "" for s in sides]
        ratio = f"{seconds['cuDNN'] / seconds['fastrnn']:.2f}" if "cuDNN" in seconds else ""
        what = f"{row['cell']} {row['kind']} | {tuple(row['shape'])} | {row['precision']}"
        lines.append(f"| {what} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cuda.json"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--check-only", action="store_true")
    arguments = parser.parse_args()
    try:
        fastrnn.LSTM(1, 1, backend="cuda")
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    if memory.SIMULATED:
        sys.exit("NUMBA_ENABLE_CUDASIM is set: this needs a GPU")
    checks = check()
    result = {"device": memory.device().name, "checks": checks, "timings": []}
    wrong = [row for row in checks if not row["ok"]]
    if not wrong and not arguments.check_only:
        result["timings"] = timings(arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if result["timings"]:
        text = f"{result['device']}\n\n{table(result['timings'])}\n"
        arguments.out.with_suffix(".md").write_text(text)
        print(text)
    if wrong:
        sys.exit(f"{len(wrong)} of {len(checks)} checks failed, nothing was timed: {wrong}")


if __name__ == "__main__":
    main()
