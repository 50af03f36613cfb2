"""Layers: parameters with an explicit forward and backward."""

from .crf import CRF
from .dropout import Dropout
from .embedding import Embedding
from .linear import Linear
from .rnn import GRU, LSTM, RNN

__all__ = ["CRF", "GRU", "LSTM", "RNN", "Dropout", "Embedding", "Linear"]
