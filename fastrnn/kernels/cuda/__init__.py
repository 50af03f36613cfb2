"""The CUDA backend: kernels compiled by Numba for NVIDIA's GPUs (see kernels/__init__).

What came from the host is returned to the host. The CRF is computed there.
"""

from fastrnn.kernels.cpu import crf_gradient, crf_viterbi

from . import update
from .launch import require
from .linear import Weights as LinearWeights
from .linear import backward as linear_backward
from .linear import forward as linear_forward
from .memory import empty, like, on_stream_of, to_device, to_host
from .moves import concatenate
from .pointwise import cross_entropy, dropout, embedding_backward, embedding_forward, scale
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
    "cross_entropy",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "like",
    "linear_backward",
    "linear_forward",
    "on_stream_of",
    "recurrent_backward",
    "recurrent_forward",
    "recurrent_step",
    "require",
    "scale",
    "to_device",
    "to_host",
    "update",
    "values",
]


def values(parameters) -> dict:
    """The parameters by name, on the device."""
    return parameters.on_device(to_device)
