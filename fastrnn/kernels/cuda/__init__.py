"""The CUDA backend: kernels compiled by Numba for NVIDIA's GPUs (see kernels/backend.py)."""

from fastrnn.kernels.host import all_finite

from .crf import crf_gradient, crf_viterbi
from .driver import stream_of
from .launch import require
from .linear import LinearWeights, linear_backward, linear_forward
from .memory import copy, device_view, empty, to_caller, to_device, to_host, zero_state
from .moves import concatenate, pack, sort, unpack, unsort
from .optim import adam, norm, sgd
from .pointwise import cross_entropy, dropout, embedding_backward, embedding_forward, scale
from .recurrent import (
    RecurrentWeights,
    recurrent_backward,
    recurrent_forward,
    recurrent_plan,
)

on_device = True


def parameters_on(parameters) -> dict:
    """The parameters by name, on the device."""
    return parameters.on_device(to_device)


def writable(parameters):
    """The flat vector of the parameters on the device, to be written now."""
    return parameters.writing_on_device(to_device)


takes_embedded = False

__all__ = [
    "LinearWeights",
    "RecurrentWeights",
    "adam",
    "all_finite",
    "concatenate",
    "copy",
    "crf_gradient",
    "crf_viterbi",
    "cross_entropy",
    "device_view",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "linear_backward",
    "linear_forward",
    "norm",
    "on_device",
    "pack",
    "parameters_on",
    "recurrent_backward",
    "recurrent_forward",
    "recurrent_plan",
    "require",
    "scale",
    "sgd",
    "sort",
    "stream_of",
    "takes_embedded",
    "to_caller",
    "to_device",
    "to_host",
    "unpack",
    "unsort",
    "writable",
    "zero_state",
]
