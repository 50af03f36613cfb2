"""The CPU backend: compiled kernels on this package's own threads (see kernels/__init__)."""

from fastrnn.kernels.host import (
    concatenate,
    embedding_backward,
    embedding_forward,
    empty,
    scale,
    to_device,
    to_host,
    values,
)

from . import update
from .crf import crf_gradient, crf_viterbi
from .dense import Weights as LinearWeights
from .dense import backward as linear_backward
from .dense import forward as linear_forward
from .dropout import dropout
from .recurrent import Weights as RecurrentWeights
from .recurrent import backward as recurrent_backward
from .recurrent import forward as recurrent_forward
from .recurrent import step as recurrent_step

__all__ = [
    "LinearWeights",
    "RecurrentWeights",
    "concatenate",
    "crf_gradient",
    "crf_viterbi",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "linear_backward",
    "linear_forward",
    "recurrent_backward",
    "recurrent_forward",
    "recurrent_step",
    "scale",
    "to_device",
    "to_host",
    "update",
    "values",
]
