"""The CPU backend: compiled kernels on this package's own threads (see kernels/__init__)."""

from .dense import Weights as LinearWeights
from .dense import backward as linear_backward
from .dense import forward as linear_forward
from .lstm import Weights as LSTMWeights
from .lstm import backward as lstm_backward
from .lstm import forward as lstm_forward

__all__ = [
    "LSTMWeights",
    "LinearWeights",
    "linear_backward",
    "linear_forward",
    "lstm_backward",
    "lstm_forward",
]
