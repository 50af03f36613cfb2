"""Fast recurrent networks on NumPy arrays, without a framework.

>>> import numpy as np
>>> import fastrnn
>>> lstm = fastrnn.LSTM(64, 128, seed=0)
>>> y, (h_n, c_n) = lstm(np.zeros((10, 4, 64)))

Names are imported on first use: ``import fastrnn`` alone loads nothing heavy.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("fastrnn._native") is None and "FASTRNN_COMPILE_FOR" not in os.environ:
    raise ImportError(
        f"{__path__[0]} is the source folder, without compiled modules: start Python in another "
        f"folder to use the installed package, or build in place with pip install -e ."
    )

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "CRF",
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveSoftmax",
    "Dropout",
    "Embedding",
    "Linear",
    "Trainer",
    "cross_entropy",
    "from_torch",
    "gather_rows",
    "get_num_threads",
    "layers",
    "losses",
    "models",
    "optim",
    "pad_sequences",
    "scatter_add_rows",
    "set_num_threads",
]

if TYPE_CHECKING:
    from . import layers, losses, models, optim
    from ._gather import gather_rows, scatter_add_rows
    from ._padding import pad_sequences
    from .conversion import from_torch
    from .layers import CRF, GRU, LSTM, RNN, AdaptiveSoftmax, Dropout, Embedding, Linear
    from .losses import cross_entropy
    from .optim import ASGD, SGD, Adam, AdamW
    from .runtime.threads import get_num_threads, set_num_threads
    from .trainer import Trainer

_MODULES = ("keras", "layers", "losses", "models", "onnx", "optim", "torch")
_HOME = {
    "CRF": "layers",
    "GRU": "layers",
    "LSTM": "layers",
    "RNN": "layers",
    "AdaptiveSoftmax": "layers",
    "Dropout": "layers",
    "Embedding": "layers",
    "Linear": "layers",
    "cross_entropy": "losses",
    "from_torch": "conversion",
    "ASGD": "optim",
    "SGD": "optim",
    "Adam": "optim",
    "AdamW": "optim",
    "Trainer": "trainer",
    "gather_rows": "_gather",
    "scatter_add_rows": "_gather",
    "pad_sequences": "_padding",
    "get_num_threads": "runtime.threads",
    "set_num_threads": "runtime.threads",
}


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__():
    return sorted(__all__)
