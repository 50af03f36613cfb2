"""Fast recurrent networks in NumPy arrays, without a framework.

>>> import numpy as np
>>> import fastrnn
>>> lstm = fastrnn.LSTM(64, 128, seed=0)
>>> y, (h_n, c_n) = lstm(np.zeros((10, 4, 64)))

Names are imported when they are first used: ``import fastrnn`` alone loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "LSTM": "layers",
    "Linear": "layers",
    "Embedding": "layers",
    "Dropout": "layers",
    "cross_entropy": "losses",
    "SGD": "optim",
    "Adam": "optim",
    "AdamW": "optim",
    "Trainer": "trainer",
    "gather_rows": "_gather",
    "scatter_add_rows": "_gather",
    "pad_sequences": "_padding",
    "set_num_threads": "kernels.cpu.threads",
    "get_num_threads": "kernels.cpu.threads",
}
_MODULES = ("layers", "losses", "models", "optim")

__all__ = [*_HOME, *_MODULES]

if TYPE_CHECKING:
    from . import layers, losses, models, optim
    from ._gather import gather_rows, scatter_add_rows
    from ._padding import pad_sequences
    from .kernels.cpu.threads import get_num_threads, set_num_threads
    from .layers import LSTM, Dropout, Embedding, Linear
    from .losses import cross_entropy
    from .optim import SGD, Adam, AdamW
    from .trainer import Trainer


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
