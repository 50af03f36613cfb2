"""`from_torch`: layers with the parameters of a PyTorch model, without PyTorch."""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import load_tensors
from fastrnn.layers import GRU, LSTM, RNN, Embedding, Linear
from fastrnn.types import BackendName, DType

_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")
_MATRIX = {"weight", "bias"}  # of a Linear, or an Embedding without the latter
_BY_GATES: dict[int, Any] = {4: LSTM, 3: GRU, 1: RNN}


def from_torch(
    source: Any,
    prefix: str | None = None,
    *,
    batch_first: bool = False,
    nonlinearity: str = "tanh",
    dtype: DType | None = None,
    backend: BackendName = "cpu",
) -> Any:
    """Layers with the parameters of a PyTorch module, a state_dict or a ``.safetensors`` file.

    Parameters
    ----------
    source : torch.nn.Module, mapping of str to array or tensor, or path
        What is not an LSTM, a GRU, an RNN, a Linear or an Embedding is left out. Without a module,
        a matrix ``weight`` is a Linear if there is a ``bias``, else an Embedding.
    prefix : str, optional
        Only the layer whose parameters begin with it, with or without the last dot.
    batch_first, nonlinearity
        Of recurrent layers; a module knows them itself.
    dtype : {"float32", "float64"}, optional
        By default float64 for parameters of float64, else float32; bfloat16 and float16 are
        converted.
    backend : {"cpu", "cuda", "reference"}

    Returns
    -------
    layer or dict of str to layer
        The layer of ``prefix``, or the one that ``source`` is itself; otherwise all, by the names
        of their modules.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        There is no such file or layer, or parameters do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> state = {f"encoder.{k}": v for k, v in fastrnn.GRU(3, 5).state_dict().items()}
    >>> list(fastrnn.from_torch(state))
    ['encoder']
    """
    modules: dict[str, Any] = {}
    if isinstance(source, str | PathLike):
        arrays: Mapping = load_tensors(source)
    elif hasattr(source, "named_modules") and not isinstance(source, type):
        arrays, modules = source.state_dict(), dict(source.named_modules())
    elif isinstance(source, Mapping):
        arrays = source
    else:
        raise TypeError(
            f"source must be a module, a state_dict or a path, got {type(source).__name__}"
        )
    options = {"batch_first": batch_first, "nonlinearity": nonlinearity}
    common = {"dtype": dtype, "backend": backend}
    groups = _groups(arrays, modules)
    wanted = None if prefix is None else prefix.removesuffix(".")
    if wanted is not None:
        if wanted not in groups:
            raise ValueError(f"prefix must be one of {sorted(groups)}, got {prefix!r}")
        groups = {wanted: groups[wanted]}
    layers = {}
    for name, own in groups.items():
        try:
            layers[name] = _layer(own, modules.get(name), options, common)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from None
    if not layers:
        raise ValueError(f"source has no layer, only {sorted(map(str, arrays))}")
    return layers[wanted or ""] if layers.keys() == {wanted or ""} else layers


def _groups(arrays: Mapping, modules: Mapping) -> dict[str, dict[str, Any]]:
    """The parameters of each layer by its name."""
    groups: dict[str, dict[str, Any]] = {}
    for full, value in arrays.items():
        name, _, own = str(full).rpartition(".")
        groups.setdefault(name, {})[own] = value
    found = {}
    for name, group in groups.items():
        recurrent = {k: v for k, v in group.items() if _RECURRENT.fullmatch(k)}
        is_matrix = np.ndim(cast(Any, group.get("weight"))) == 2 and group.keys() <= _MATRIX
        kinds = {cls.__name__ for cls in type(modules[name]).__mro__} if name in modules else None
        if recurrent:
            found[name] = recurrent
        elif is_matrix and (kinds is None or kinds & {"Linear", "Embedding"}):
            found[name] = group
    return found


def _layer(own: Mapping[str, Any], module, options: Mapping, common: Mapping):
    """The layer with these parameters."""
    own = {name: checks.as_array(name, value) for name, value in own.items()}
    is_double = any(a.dtype == np.float64 for a in own.values())
    common = {**common, "dtype": common["dtype"] or ("float64" if is_double else "float32")}
    if "weight" in own:
        rows, columns = own["weight"].shape
        if "bias" in own or any(cls.__name__ == "Linear" for cls in type(module).__mro__):
            layer: Any = Linear(columns, rows, bias="bias" in own, **common)
        else:
            layer = Embedding(rows, columns, **common)
    else:
        layer = _recurrent(own, module, options, common)
    layer.load_state_dict(own)
    return layer


def _recurrent(own: dict[str, np.ndarray], module, options: Mapping, common: Mapping):
    missing = {"weight_ih_l0", "weight_hh_l0"} - own.keys()
    if missing:
        raise ValueError(
            f"source must have {', '.join(sorted(missing))} beside {sorted(own)}; if weights are "
            f"normalised or pruned, make that permanent in PyTorch first"
        )
    projection = own.get("weight_hr_l0")
    for name, value in own.items():
        if value.ndim != (2 if name.startswith("weight") else 1):
            raise ValueError(f"{name} must be a matrix or, for a bias, a vector, got {value.shape}")
    rows, units = own["weight_hh_l0"].shape
    if projection is not None:
        units = projection.shape[1]
    cls = _BY_GATES.get(rows // units) if rows % units == 0 else None
    if cls is None:
        raise ValueError(f"weight_hh_l0 must have 1, 3 or 4 times {units} rows, got {rows}")
    more: dict[str, Any] = {} if projection is None else {"proj_size": len(projection)}
    if cls is RNN:
        more["nonlinearity"] = getattr(module, "nonlinearity", options["nonlinearity"])
    return cls(
        own["weight_ih_l0"].shape[1],
        units,
        1 + max(int(name.split("_l")[1].split("_")[0]) for name in own),
        bias="bias_ih_l0" in own,
        bidirectional=any(name.endswith("_reverse") for name in own),
        batch_first=getattr(module, "batch_first", options["batch_first"]),
        dropout=getattr(module, "dropout", 0.0),
        **more,
        **common,
    )
