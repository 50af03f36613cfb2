"""The CUDA backend: the recurrent layers by numba.cuda (see kernels/__init__)."""

from fastrnn.kernels.cpu import (
    LinearWeights,
    crf_gradient,
    crf_viterbi,
    dropout,
    linear_backward,
    linear_forward,
)

from .launch import require
from .recurrent import Weights as RecurrentWeights
from .recurrent import backward as recurrent_backward
from .recurrent import forward as recurrent_forward
from .recurrent import step as recurrent_step

__all__ = [
    "LinearWeights",
    "RecurrentWeights",
    "crf_gradient",
    "crf_viterbi",
    "dropout",
    "linear_backward",
    "linear_forward",
    "recurrent_backward",
    "recurrent_forward",
    "recurrent_step",
    "require",
]
