"""Keras 3: weights of its recurrent layers as layers of this package and back, and its masks.

>>> import fastrnn.keras
>>> layers = fastrnn.keras.from_keras("model.keras")         # {"lstm": LSTM(...), ...}
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.extras import needs
from fastrnn.layers import GRU, LSTM, RNN

_MISSING = needs("fastrnn.keras needs Keras", "keras")


class _Kind(NamedTuple):
    """A recurrent layer of Keras."""

    layer: Any
    gates: tuple[str, ...]  # of `Cell.gates`, in the order of its weights


_KINDS = {
    "LSTM": _Kind(LSTM, ("i", "f", "g", "o")),
    "GRU": _Kind(GRU, ("z", "r", "n")),
    "SimpleRNN": _Kind(RNN, ("h",)),
}
_BY_GATES = {len(kind.gates): name for name, kind in _KINDS.items()}
_DEFAULTS = {
    "LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "SimpleRNN": ("tanh",),
}  # fmt: skip
_SHARED = ("units", "activation", "recurrent_activation", "use_bias", "reset_after")
_ACTIVATIONS = {
    "sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu", "linear": "affine(1, 0)", "elu": "elu",
    "softsign": "softsign", "softplus": "softplus", "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6}, 0.5)",
}  # fmt: skip


def from_keras(source, *, backend: str = "cpu"):
    """The recurrent layers of a model as layers of this package.

    Parameters
    ----------
    source : keras.Model, keras.layers.Layer or path
        LSTM, GRU, SimpleRNN and Bidirectional of these are read, other layers left out. A file
        ``.keras`` has a whole model; ``.weights.h5`` has weights alone, so the activation functions
        are then taken to be Keras's defaults, and layers are called by their classes ("lstm",
        "bidirectional_1"), as in the file.
    backend : {"cpu", "cuda", "reference"}

    Returns
    -------
    layer or dict of str to layer
        The layer for a recurrent layer of Keras, otherwise all by their names. Layers have
        ``batch_first=True`` and no initial state.

    Raises
    ------
    ImportError
        Keras is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, there is no recurrent layer, or one has an option that no layer of
        this package has; the message names it.
    """
    if isinstance(source, str | PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        if path.name.endswith(".weights.h5"):
            return _from_h5(path, backend)
        source = _load(path)
    one = _kind(source)
    if one:
        return _layer(source, backend)
    if not hasattr(source, "layers"):
        raise ValueError(f"source must be a model or a recurrent layer, got {_name(source)}")
    found = {name: _layer(layer, backend) for name, layer in _recurrent(source)}
    if not found:
        raise ValueError(f"{_name(source)} has no recurrent layer")
    return found


def set_weights(target, layer) -> None:
    """Give a recurrent layer of Keras the weights of a layer of this package.

    Raises
    ------
    ValueError
        It is of another kind, or has other options or sizes.
    """
    wanted = _layer(target, "cpu")
    if type(wanted) is not type(layer) or wanted.cell.key != layer.cell.key or layer.num_layers > 1:
        raise ValueError(f"layer must be {wanted!r}, got {layer!r}")
    state = layer.state_dict()
    values = []
    for suffix in ("_l0", "_l0_reverse")[: layer.directions]:
        values += _to_keras(wanted, {k: state[k + suffix] for k in layer._names}, _one(target))
    shapes = [tuple(w.shape) for w in target.get_weights()]
    if [v.shape for v in values] != shapes:
        raise ValueError(f"layer must fit weights of shapes {shapes}, got {layer!r}")
    target.set_weights(values)


def lengths_of(mask) -> np.ndarray:
    """The lengths [B] of a mask [B, T] of right padding.

    Raises
    ------
    ValueError
        A sequence has a masked step before another; the message names it. See `compress`.
    """
    mask = _checked_mask(mask)
    lengths = mask.sum(axis=1)
    bad = np.flatnonzero((mask != (np.arange(mask.shape[1]) < lengths[:, None])).any(axis=1))
    if len(bad):
        raise ValueError(
            f"mask: sequence {bad[0]} has a masked step before others, which lengths cannot "
            f"express; use fastrnn.keras.compress"
        )
    return lengths


def compress(x, mask) -> tuple[np.ndarray, np.ndarray]:
    """``(x, lengths)`` without the masked steps of x [B, T, ...], whatever the mask [B, T].

    A masked step leaves the state of a layer of Keras as it is, so it can be left out. The steps
    that remain keep their order.
    """
    x, mask = checks.as_array("x", x), _checked_mask(mask)
    if x.shape[:2] != mask.shape:
        raise ValueError(f"mask must have shape {x.shape[:2]}, got {mask.shape}")
    order = np.argsort(~mask, axis=1, kind="stable")
    order = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    return np.take_along_axis(x, order, axis=1), mask.sum(axis=1)


def _checked_mask(mask) -> np.ndarray:
    array = checks.as_array("mask", mask)
    if array.ndim != 2 or array.dtype != bool:
        raise ValueError(f"mask must be bool [B, T], got {array.dtype} {array.shape}")
    return array


# Objects of Keras


def _load(path: Path):
    try:
        from keras.saving import load_model
    except ImportError as error:
        raise ImportError(_MISSING) from error
    try:
        return load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"Keras cannot load {path}: {error}") from error


def _name(layer) -> str:
    return f"{type(layer).__name__} {getattr(layer, 'name', '')!r}"


def _one(layer):
    """The layer itself, or the forward one of a Bidirectional."""
    return layer.forward_layer if type(layer).__name__ == "Bidirectional" else layer


def _kind(layer) -> str | None:
    one = _one(layer)
    name = type(one).__name__
    return name if name in _KINDS and hasattr(one, "get_config") else None


def _recurrent(model, prefix: str = ""):
    for layer in model.layers:
        if _kind(layer):
            yield prefix + layer.name, layer
        elif hasattr(layer, "layers"):
            yield from _recurrent(layer, f"{prefix}{layer.name}/")


def _layer(layer, backend: str):
    """The layer of this package with the options and weights of one of Keras."""
    name, one = _name(layer), _one(layer)
    kind = _kind(layer)
    if kind is None:
        raise ValueError(f"{name} is not an LSTM, GRU, SimpleRNN or Bidirectional of these")
    is_both = one is not layer
    config = one.get_config()
    if config.get("go_backwards"):
        raise ValueError(f"{name}: go_backwards is not supported, turn x around instead")
    if is_both:
        other, backward = type(layer.backward_layer).__name__, layer.backward_layer.get_config()
        differ = [k for k in _SHARED if config.get(k) != backward.get(k)]
        if other != kind or differ:
            raise ValueError(
                f"{name}: both directions must be the same, got {kind} and {other}, "
                f"different in {differ}"
            )
        mode = layer.get_config().get("merge_mode")
        if mode not in ("concat", None):
            raise ValueError(f"{name}: merge_mode must be 'concat' or None, got {mode!r}")
    options: dict[str, Any] = {}
    if kind == "GRU" and not config["reset_after"]:
        options["variant"] = "reset_before"
    names = ["activation"] if kind == "SimpleRNN" else ["recurrent_activation", "activation"]
    found = []
    for part in names:
        given = config[part]
        if not isinstance(given, str) or given not in _ACTIVATIONS:
            raise ValueError(
                f"{name}: {part} must be one of {', '.join(_ACTIVATIONS)}, got {given!r}"
            )
        found.append(_ACTIVATIONS[given])
    if kind == "LSTM":
        found.append(found[1])  # of c in h as well
    weights = layer.get_weights()
    if not weights:
        raise ValueError(f"{name} has no weights yet: build the model, or call it once")
    half = len(weights) // (2 if is_both else 1)
    parts = [weights[:half], weights[half:]] if is_both else [weights]
    return _made(kind, parts, tuple(found), options, backend)


def _made(kind: str, parts, activations: tuple[str, ...], options: dict, backend: str):
    """A layer with the weights ``[kernel, recurrent kernel, bias]`` of each direction."""
    cls, gates = _KINDS[kind]
    kernel, recurrent = parts[0][0], parts[0][1]
    if activations == ("relu",):
        options = {**options, "nonlinearity": "relu"}
    elif activations != _DEFAULTS[kind]:
        options = {**options, "activations": activations}
    layer = cls(
        kernel.shape[0], recurrent.shape[0], bias=len(parts[0]) > 2, bidirectional=len(parts) > 1,
        batch_first=True, dtype="float64" if kernel.dtype == np.float64 else "float32",
        backend=backend, **options,
    )  # fmt: skip
    state = dict[str, np.ndarray]()
    for suffix, (w, r, *bias) in zip(("_l0", "_l0_reverse"), parts, strict=False):
        own = {"weight_ih": w.T, "weight_hh": r.T}
        if bias:
            # One bias belongs to the input; a GRU with reset_after has a second one.
            two = bias[0] if bias[0].ndim == 2 else (bias[0], np.zeros_like(bias[0]))
            own["bias_ih"], own["bias_hh"] = two
        order = [gates.index(gate) for gate in layer.cell.gates]
        state |= {name + suffix: _reordered(v, order) for name, v in own.items()}
    layer.load_state_dict(state)
    return layer


def _reordered(value: np.ndarray, order) -> np.ndarray:
    blocks = value.reshape(len(order), -1, *value.shape[1:])
    return blocks[list(order)].reshape(value.shape)


def _to_keras(layer, own: Mapping[str, np.ndarray], target) -> list[np.ndarray]:
    """The weights of one direction in Keras's order."""
    gates = _KINDS[type(target).__name__].gates
    order = [layer.cell.gates.index(gate) for gate in gates]
    own = {name: _reordered(value, order) for name, value in own.items()}
    values = [own["weight_ih"].T, own["weight_hh"].T]
    if "bias_ih" in own:
        two = own["bias_ih"], own["bias_hh"]
        reset_after = isinstance(layer, GRU) and layer.variant is None
        values.append(np.stack(two) if reset_after else two[0] + two[1])
    return values


# Files of weights alone


def _from_h5(path: Path, backend: str) -> dict:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(_MISSING) from error
    cells: dict[str, list[np.ndarray]] = {}

    def visit(name: str, item) -> None:
        if name.endswith("/cell/vars") and len(item) >= 2:
            cells[name.removesuffix("/cell/vars")] = [item[str(k)][()] for k in range(len(item))]

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged or not a file of Keras weights: {error}") from error
    found = {}
    for name, weights in cells.items():
        if name.endswith("/backward_layer"):
            continue
        parts = [weights]
        if name.endswith("/forward_layer"):
            name = name.removesuffix("/forward_layer")
            if f"{name}/backward_layer" not in cells:
                raise ValueError(f"{path}: {name} has no backward_layer")
            parts.append(cells[f"{name}/backward_layer"])
        if weights[0].ndim != 2 or weights[1].ndim != 2:
            raise ValueError(f"{path}: the kernels of {name} must be matrices")
        rows = weights[1].shape[1] // max(1, weights[1].shape[0])
        kind = _BY_GATES.get(rows)
        if kind is None:
            raise ValueError(f"{path}: {name} must have 1, 3 or 4 gates, got {rows}")
        options: dict[str, Any] = {}
        if kind == "GRU" and len(weights) > 2 and weights[2].ndim == 1:
            options["variant"] = "reset_before"
        short = name.removeprefix("layers/")
        found[short] = _made(kind, parts, _DEFAULTS[kind], options, backend)
    if not found:
        raise ValueError(f"{path} has no recurrent layer")
    return found
