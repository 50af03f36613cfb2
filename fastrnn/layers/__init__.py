"""Layers: parameters with an explicit forward and backward."""

from .crf import CRF
from .dropout import Dropout
from .embedding import Embedding
from .linear import Linear
from .rnn import GRU, LSTM, RNN
from .softmax import AdaptiveSoftmax

__all__ = ["CRF", "GRU", "LSTM", "RNN", "AdaptiveSoftmax", "Dropout", "Embedding", "Linear"]
