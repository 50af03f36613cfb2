"""The CUDA backend: the recurrent layers by numba.cuda (see kernels/__init__)."""

from fastrnn.kernels.cpu import (
    LinearWeights,
    crf_gradient,
    crf_viterbi,
    linear_backward,
    linear_forward,
)

from .launch import require
from .memory import is_on_device, like, on_stream_of, to_device
from .moves import concatenate
from .pointwise import dropout
from .recurrent import Weights as RecurrentWeights
from .recurrent import backward as recurrent_backward
from .recurrent import forward as recurrent_forward
from .recurrent import step as recurrent_step
from .rows import DeviceRows

__all__ = [
    "DeviceRows",
    "LinearWeights",
    "RecurrentWeights",
    "concatenate",
    "crf_gradient",
    "crf_viterbi",
    "dropout",
    "is_on_device",
    "like",
    "linear_backward",
    "linear_forward",
    "on_stream_of",
    "recurrent_backward",
    "recurrent_forward",
    "recurrent_step",
    "require",
    "to_device",
]
