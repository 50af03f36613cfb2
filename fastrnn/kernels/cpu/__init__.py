"""The CPU backend: compiled kernels on this package's own threads (see kernels/backend.py)."""

from fastrnn.kernels.host import (
    concatenate,
    copy,
    device_view,
    embedding_backward,
    embedding_forward,
    empty,
    on_device,
    parameters_on,
    sort,
    stream_of,
    to_caller,
    to_device,
    to_host,
    unsort,
    writable,
    zero_state,
)

from .crf import crf_gradient, crf_viterbi
from .linear import LinearWeights, linear_backward, linear_forward
from .optim import adam, norm, sgd
from .pointwise import all_finite, cross_entropy, dropout, scale
from .recurrent import (
    RecurrentWeights,
    recurrent_backward,
    recurrent_forward,
    recurrent_plan,
)
from .rows import pack, unpack

takes_embedded = True

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
