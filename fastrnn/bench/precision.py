"""Layers and models in bfloat16 and int8, against float32 and other packages in the same types."""

import contextlib
import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.kernels.native.formats import choose

from . import peers
from .cases import _batch, _check_training, _flops, _pair, _train, close
from .timing import Case

# Multiply-adds per instruction, relative to float32.
_SPEED = {"bf16": 2.0, "bf16_tiles": 16.0}
TOLERANCE = 2e-2


def _speed(precision: str, *, training: bool) -> float:
    form = choose(precision, np.dtype("float32"), training=training)
    return _SPEED.get(form.name, 1.0)


def tune_malloc() -> None:
    """Let glibc keep the memory that it frees, which PyTorch's training gains from."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in -1, -3:  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 1 << 30)


def _in_bf16(function: Callable) -> Callable:
    """A call of PyTorch under autocast."""
    import torch

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    return run


def _both(cell, *sizes, **options):
    """A layer in bf16, the same in float32, and the oracle in float64."""
    single, oracle = _pair(cell, *sizes, **options)
    layer = cell(*sizes, **options, precision="bf16", seed=0)
    return layer, single, oracle


def training(cell, shape) -> Case:
    """As `cases.training`."""
    steps, batch, inputs, units = shape
    tune_malloc()
    layer, single, oracle = _both(cell, inputs, units)
    x, dy = _batch(layer, steps, batch)
    others: dict[str, Callable] = {"fastrnn, float32": lambda: _train(single, x, dy)}
    if peers.has("torch"):
        others["torch, bf16"] = peers.torch_training(layer, x, dy, wrap=_in_bf16)["torch"]
    return Case(
        lambda: _train(layer, x, dy),
        lambda: _check_training(layer, oracle, x, dy, tolerance=TOLERANCE), others,
        3 * _flops(layer, steps * batch), speed=_speed("bf16", training=True),
    )  # fmt: skip


def ragged(cell, shape) -> Case:
    """As `cases.ragged`."""
    batch, inputs, units = shape
    tune_malloc()
    layer, single, oracle = _both(cell, inputs, units, bidirectional=True)
    lengths = np.clip(np.random.default_rng(0).gamma(3.0, 8.0, batch), 1, 150).astype(np.int64)
    x, dy = _batch(layer, int(lengths.max()), batch)
    x *= (np.arange(len(x))[:, None] < lengths)[..., None]
    found = peers.torch_ragged(layer, x, lengths, dy, wrap=_in_bf16)
    others: dict[str, Callable] = {"fastrnn, float32": lambda: _train(single, x, dy, lengths)}
    others |= {name.replace("torch", "torch, bf16"): run for name, run in found.items()}
    return Case(
        lambda: _train(layer, x, dy, lengths),
        lambda: _check_training(layer, oracle, x, dy, lengths, tolerance=TOLERANCE), others,
        3 * _flops(layer, lengths.sum()), items=batch, speed=_speed("bf16", training=True),
    )  # fmt: skip


def stream(precision, shape) -> Case:
    """Single steps of one sequence, one call per step, on one thread."""
    inputs, units = shape
    single, oracle = _pair(fastrnn.LSTM, inputs, units)
    layer = fastrnn.LSTM(inputs, units, precision=precision, seed=0)
    x, _ = _batch(layer, 50, 1)
    threads = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    try:
        others = _onnx_int8(single, x)
    finally:
        fastrnn.set_num_threads(threads)

    def of(layer):
        def run():
            state = None
            for x_t in x:
                y, state = layer.step(x_t, state)
            return y

        return run

    def check():
        wanted = oracle(x)[0][-1:]
        close(of(layer)()[None], wanted, TOLERANCE)
        for peer in others.values():
            close(peer(), wanted, 0.1)

    return Case(
        of(layer), check, {"fastrnn, float32": of(single), **others}, _flops(layer, len(x)),
        calls=len(x), threads=1, speed=_speed(precision, training=False),
    )  # fmt: skip


def _onnx_int8(layer, x) -> dict[str, Callable]:
    """The layer with weights in int8, quantised dynamically by onnxruntime."""
    if not peers.has("onnx", "onnxruntime"):
        return {}
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    def quantised(model):
        with tempfile.TemporaryDirectory() as folder:
            source, to = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            quantize_dynamic(source, to, op_types_to_quantize=["LSTM"])
            return onnx.load(to)

    found = peers.onnx_steps(layer, x, change=quantised)
    return {f"{name}, dynamic int8": run for name, run in found.items()}


def language_model() -> Case:
    """As `cases.language_model`."""
    from .cases import language_model as make

    tune_malloc()
    case, single = make(64, precision="bf16", wrap=_in_bf16), make(64)
    others = {"fastrnn, float32": single.ours}
    others |= {name.replace("torch", "torch, bf16"): run for name, run in case.peers.items()}
    return Case(
        case.ours, case.check, others, case.flops, items=case.items,
        speed=_speed("bf16", training=True),
    )  # fmt: skip
