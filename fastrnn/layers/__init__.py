"""Layers: parameters with an explicit forward and backward."""

from .dropout import Dropout
from .embedding import Embedding
from .linear import Linear
from .recurrent import LSTM

__all__ = ["LSTM", "Dropout", "Embedding", "Linear"]
