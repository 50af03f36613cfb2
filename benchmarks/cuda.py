"""Checks the CUDA backend on a GPU, then times it against cuDNN: see CUDA.md beside this file.

    python -m benchmarks.cuda [--out cuda.jsonl] [--only checks host] [--limit 120]

Each case runs in a process of its own with a time limit, and its result is appended to the file at
once, as a line of JSON: a case that fails or hangs costs only itself. Cases that are in the file
already are not run again.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CELLS = "LSTM", "GRU", "RNN"
# Limit of the difference from the reference, relative to its largest value or to 1 if larger.
GRADES = {"float32": 5e-5, "tf32": 4e-3, "bf16": 4e-2}
# Steps, sequences, inputs, units, and whether sequences have different lengths.
CHECKED = [
    (1, 1, 1, 1, False), (7, 1, 5, 64, False), (5, 9, 3, 33, True), (12, 33, 40, 100, True),
    (9, 17, 20, 256, True), (6, 70, 30, 300, False), (4, 5, 8, 650, True), (3, 4, 6, 1500, False),
]  # fmt: skip
LOOPS = [
    (50, 32, 128, 256), (50, 8, 128, 256), (50, 32, 128, 512), (100, 64, 256, 512),
    (50, 32, 128, 1024),
]  # fmt: skip
PRODUCTS = [(6400, 256, 2048), (2048, 6400, 512), (1600, 128, 1024), (35 * 20, 650, 10000)]
Case = dict[str, Any]


def cases(stage: str) -> Iterator[Case]:
    """What a stage runs, the cheapest and most telling first."""
    if stage == "smoke":
        yield {"what": "smoke"}
    elif stage == "checks":
        for sizes in CHECKED:
            for cell in CELLS:
                for loop in ("grid", "group", "cluster"):
                    for precision in GRADES if loop != "grid" else ("float32",):
                        yield {
                            "what": "check", "cell": cell, "loop": loop, "precision": precision,
                            "sizes": sizes,
                        }  # fmt: skip
    elif stage == "loops":
        for cell in CELLS:
            for sizes in LOOPS:
                for precision in GRADES:
                    for loop in ("cluster", "group"):
                        yield {
                            "what": "loop", "cell": cell, "loop": loop, "precision": precision,
                            "sizes": sizes,
                        }  # fmt: skip
    elif stage == "products":
        for sizes in PRODUCTS:
            for how in ("cublas", "own"):
                for precision in ("tf32", "float32"):
                    yield {"what": "product", "by": how, "precision": precision, "sizes": sizes}
    elif stage == "host":
        for sizes in LOOPS[:3]:
            yield {"what": "host", "cell": "LSTM", "precision": "bf16", "sizes": sizes}
    elif stage == "layers":
        from fastrnn.bench.cases import DENSE

        for cell in CELLS:
            for sizes in DENSE:
                for precision in GRADES:
                    yield {"what": "layer", "cell": cell, "precision": precision, "sizes": sizes}
        yield {"what": "ragged", "cell": "LSTM", "precision": "bf16", "sizes": (80, 64, 128, 256)}
        yield {"what": "ragged", "cell": "LSTM", "precision": "tf32", "sizes": (80, 64, 128, 256)}
    elif stage == "profile":
        for precision in GRADES:
            yield {"what": "profile", "cell": "LSTM", "precision": precision, "sizes": LOOPS[0]}


STAGES = "smoke", "checks", "loops", "products", "host", "layers", "profile"


def _layer(case: Case, **options):
    import fastrnn

    _, _, inputs, units = case["sizes"][:4]
    options = {"precision": case["precision"], "backend": "cuda", "seed": 0} | options
    return getattr(fastrnn, case["cell"])(inputs, units, **options)


def _arrays(layer, steps: int, batch: int):
    rng = np.random.default_rng(0)
    width = layer.directions * layer.hidden_size
    x = rng.standard_normal((steps, batch, layer.input_size), np.float32)
    return x, rng.standard_normal((steps, batch, width), np.float32)


class Clock:
    """The device's time between two points of the default stream."""

    def __init__(self):
        from fastrnn.kernels.cuda import driver, memory

        self._call = driver.driver_call
        driver.here().core.set_current()
        self._events = [self._call("cuEventCreate", 0) for _ in range(2)]
        self._filler = memory.empty(256 << 20, np.int8)

    def seconds(self, function) -> float:
        """What ``function`` queues takes, without the time that the host needs for it: the device
        is given something else to do meanwhile, for about 100 microseconds."""
        self._call("cuMemsetD8Async", self._filler.pointer, 0, self._filler.nbytes, 1)
        return self.seconds_from_here(function)

    def seconds_from_here(self, function) -> float:
        """The same with the host's time, where the device waits for the host."""
        self._call("cuEventRecord", self._events[0], 1)
        function()
        self._call("cuEventRecord", self._events[1], 1)
        self._call("cuEventSynchronize", self._events[1])
        return self._call("cuEventElapsedTime", *self._events) * 1e-3


def _in_turn(sides: dict[str, Any], rounds: int = 20, calls: int = 10) -> dict[str, float]:
    """The median seconds of a call of each function, of which ``calls`` are queued in turn."""
    clock, times = Clock(), {side: list[float]() for side in sides}
    for turn in range(rounds + 3):
        for side, function in sides.items():
            seconds = clock.seconds_from_here(lambda f=function: [f() for _ in range(calls)])
            if turn >= 3:  # the turns before compile and warm up
                times[side].append(seconds / calls)
    return {side: statistics.median(t) for side, t in times.items()}


def _by_operation(function, rounds: int = 5) -> dict[str, float]:
    """The seconds that a call spends in each kernel, copy and product by cuBLAS."""
    from fastrnn.kernels.cuda import blas, driver, launch

    clock, turns = Clock(), list[dict[str, float]]()

    def timed(original, name):
        def run(*args, **options):
            seconds = clock.seconds(lambda: original(*args, **options))
            spent, of = turns[-1], name(*args)
            spent[of] = spent.get(of, 0) + seconds

        return run

    watched: Any = [
        (launch.Kernel, "__call__", lambda kernel, *_: kernel.name),
        (driver.Device, "queue", lambda _, operation, *__: operation),
        (blas, "product", lambda *_: "cuBLAS"),
    ]
    function()  # compiles
    originals = [getattr(owner, attribute) for owner, attribute, _ in watched]
    for (owner, attribute, name), original in zip(watched, originals, strict=True):
        setattr(owner, attribute, timed(original, name))
    try:
        for _ in range(rounds):
            turns.append({})
            function()
    finally:
        for (owner, attribute, _), original in zip(watched, originals, strict=True):
            setattr(owner, attribute, original)
    return {of: statistics.median(t.get(of, 0) for t in turns) for of in turns[-1]}


def smoke(case: Case) -> Case:
    """One small layer, and what machine this is."""
    import fastrnn
    from fastrnn.kernels.cuda import blas, driver

    layer = fastrnn.LSTM(4, 8, backend="cuda", seed=0)
    judge = fastrnn.LSTM(4, 8, seed=0)
    x, _ = _arrays(layer, 3, 2)
    here, error = driver.here(), float(np.abs(layer(x)[0] - judge(x)[0]).max())
    return {
        "device": here.core.name, "capability": here.capability, "cuBLAS": blas.is_used(),
        "driver": driver.driver_call("cuDriverGetVersion"), "error": error,
        "ok": error < GRADES["float32"],
    }  # fmt: skip


def check(case: Case) -> Case:
    """The worst difference of everything a layer computes from the reference."""
    steps, batch, *_, ragged = case["sizes"]
    _choose(case["loop"])
    ours = _layer(case, bidirectional=True)
    oracle = _layer(
        case, bidirectional=True, dtype="float64", backend="reference", precision="float32"
    )
    oracle.load_state_dict(ours.state_dict())
    lengths = np.random.default_rng(1).integers(0, steps + 1, batch) if ragged else None
    x, dy = _arrays(ours, steps, batch)
    got, wanted = (_everything(layer, x, dy, lengths) for layer in (ours, oracle))
    each = {k: np.abs(got[k] - v).max() / max(1, np.abs(v).max()) for k, v in wanted.items()}
    worst = max(each, key=lambda k: each[k] if each[k] == each[k] else np.inf)
    return {
        "ran": _chosen(ours), "worst": worst, "error": float(each[worst]),
        "ok": bool(each[worst] < GRADES[case["precision"]]),
    }  # fmt: skip


def _choose(loop: str) -> None:
    """Which time loop runs: clusters are tried first anyway, and the others behind them."""
    from fastrnn.kernels.cuda import weights

    weights.loop = None if loop == "cluster" else loop


def _chosen(layer) -> str:
    """Which one did, as not every layer fits."""
    plan = layer._weights().layers[0].plan(True)
    return "grid" if plan is None else "cluster" if plan.is_cluster else "group"


def _everything(layer, x, dy, lengths) -> dict:
    y, state, tape = layer.forward(x, lengths=lengths)
    dx, dstate, grads = layer.backward(tape, dy)
    states = {f"{k}_{i}": s for k, v in (("n", state), ("0", dstate)) for i, s in
              enumerate(v if isinstance(v, tuple) else (v,))}  # fmt: skip
    return {"y": y, "dx": dx, **states, **grads}


def loop(case: Case) -> Case:
    """Microseconds a step of the time loops alone: long sequences less short ones."""
    _choose(case["loop"])
    steps, batch, *_ = case["sizes"]
    layer, seconds = _layer(case), {}
    for factor in (1, 3):
        spent = _by_operation(_training(layer, factor * steps, batch))
        seconds[factor] = {k: s for k, s in spent.items() if k.endswith(("forward", "backward"))}
    spent = {
        f"{name}, us a step": (seconds[3][name] - s) / (2 * steps) * 1e6
        for name, s in seconds[1].items()
    }
    return {"ran": _chosen(layer)} | spent


def _training(layer, steps: int, batch: int, lengths=None):
    """Forward and backward pass of a layer on arrays of the device."""
    from fastrnn.kernels.cuda import memory

    x, dy = map(memory.to_device, _arrays(layer, steps, batch))

    def training():
        layer.parameters.writing_on_device(memory.to_device)  # as after an optimizer's step
        _, _, tape = layer.forward(x, lengths=lengths)
        layer.backward(tape, dy)

    return training


def product(case: Case) -> Case:
    """Microseconds and TFLOP/s of a matrix product."""
    os.environ["FASTRNN_CUDA_PRODUCTS"] = case["by"]
    from fastrnn.kernels.cuda import gemm, memory
    from fastrnn.kernels.cuda.matrix import Matrix, Sizes

    m, k, n = case["sizes"]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, np.float32) for s in ((m, k), (n, k)))
    there = [memory.to_device(v) for v in (a, b)]
    out = memory.empty((m, n), np.float32)
    parts = Matrix(there[0], 0, k), Matrix(there[1], 0, k).transposed, Matrix(out, 0, n)

    def run():
        gemm.product(*parts, Sizes(m, k, n), precision=case["precision"])

    run()
    wanted = a[:32].astype(float) @ b.T
    error = np.abs(out.copy_to_host()[:32] - wanted).max() / np.abs(wanted).max()
    seconds = _in_turn({"ours": run}, calls=50)["ours"]
    return {"us": seconds * 1e6, "TFLOP/s": 2 * m * k * n / seconds / 1e12, "error": float(error)}


def host(case: Case) -> Case:
    """Microseconds that the host takes to queue a call."""
    from fastrnn.kernels.cuda import memory

    steps, batch, *_ = case["sizes"]
    layer = _layer(case)
    x, out = memory.to_device(_arrays(layer, steps, batch)[0]), {}
    sides = {"inference": lambda: layer(x), "training": _training(layer, steps, batch)}
    for what, run in sides.items():
        times = []
        for _ in range(60):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
            x.device.synchronise()
        out[f"{what}, us"] = statistics.median(times[10:]) * 1e6
    return out


def _torch_sides(case: Case, lengths=None) -> dict[str, dict[str, Any]]:
    """Inference and training by cuDNN in the precision of the case, and in fp16 beside bf16."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    steps, batch, inputs, units = case["sizes"]
    names = {"bf16": {"cuDNN": torch.bfloat16, "cuDNN fp16": torch.float16}}
    sides = {}
    for side, dtype in names.get(case["precision"], {"cuDNN": torch.float32}).items():
        options: dict[str, Any] = {"device": "cuda", "dtype": dtype}
        layer = getattr(torch.nn, case["cell"])(inputs, units).to(**options)
        frozen = copy.deepcopy(layer).eval()
        x = torch.randn(steps, batch, inputs, **options, requires_grad=True)
        dy = torch.randn(steps, batch, units, **options)
        torch.backends.cudnn.allow_tf32 = case["precision"] == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = case["precision"] == "tf32"

        def inference(layer=frozen, x=x):
            with torch.no_grad():
                layer(_packed(torch, x, lengths))

        def training(layer=layer, x=x, dy=dy):
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y = layer(_packed(torch, x, lengths))[0]
            if lengths is not None:
                y = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(dy))[0]
            y.backward(dy)

        sides[side] = {"inference": inference, "training": training}
    return sides


def _packed(torch, x, lengths):
    if lengths is None:
        return x
    return torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)


def layer(case: Case, lengths=None) -> Case:
    """Milliseconds of whole layers, ours and cuDNN's in turn."""
    from fastrnn.kernels.cuda import memory

    steps, batch, *_ = case["sizes"]
    ours = _layer(case)
    x = memory.to_device(_arrays(ours, steps, batch)[0])
    mine = {
        "inference": lambda: ours(x, lengths=lengths),
        "training": _training(ours, steps, batch, lengths),
    }
    others, out = _torch_sides(case, lengths), {}
    for kind, function in mine.items():
        sides = {"fastrnn": function} | {side: f[kind] for side, f in others.items()}
        out[kind] = {side: s * 1e3 for side, s in _in_turn(sides).items()}
    return out


def ragged(case: Case) -> Case:
    """The same for sequences of lengths as in text."""
    steps, batch, *_ = case["sizes"]
    lengths = np.random.default_rng(0).geometric(4 / steps, batch).clip(1, steps)
    lengths[0] = steps
    return layer(case, lengths)


def profile(case: Case) -> Case:
    """Milliseconds that a training step spends in each kernel, copy and product."""
    steps, batch, *_ = case["sizes"]
    spent = _by_operation(_training(_layer(case), steps, batch))
    return {name: seconds * 1e3 for name, seconds in spent.items()}


RUN = {f.__name__: f for f in (smoke, check, loop, product, host, layer, ragged, profile)}


def _one(case: Case, limit: float) -> Case:
    """The result of a case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cuda", "--case", json.dumps(case)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode == 0:
            result = json.loads(last)
        else:
            result = {"failed": done.stderr.strip()[-2000:] or f"exit {done.returncode}"}
    except subprocess.TimeoutExpired:
        result = {"failed": f"no end after {limit:g} s"}
    return case | result | {"wall": round(time.monotonic() - start, 1)}


def _is_bad(row: Case) -> bool:
    return "failed" in row or row.get("ok") is False


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cuda.jsonl"))
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each case")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(RUN[arguments.case["what"]](arguments.case)))
        return
    planned = [json.loads(json.dumps(c)) for stage in arguments.only for c in cases(stage)]
    if arguments.list:
        print("\n".join(map(json.dumps, planned)))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    before = [json.loads(line) for line in lines]
    failed = 0
    for case in planned:
        if any(case.items() <= row.items() and not _is_bad(row) for row in before):
            continue
        row = _one(case, arguments.limit)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        failed += _is_bad(row)
        if case["what"] == "smoke" and _is_bad(row):
            sys.exit("there is no use in going on without the smoke test")
    if failed:
        sys.exit(f"{failed} of {len(planned)} cases failed")


if __name__ == "__main__":
    main()
