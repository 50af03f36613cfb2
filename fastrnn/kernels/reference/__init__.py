"""The reference backend: plain NumPy, slow, what every kernel is checked against."""

from fastrnn.kernels.host import (
    all_finite,
    concatenate,
    copy,
    cross_entropy,
    device_view,
    embedding_backward,
    embedding_forward,
    empty,
    on_device,
    pack,
    parameters_on,
    scale,
    sort,
    stream_of,
    to_caller,
    to_device,
    to_host,
    unpack,
    unsort,
    writable,
    zero_state,
)

from .crf import crf_gradient, crf_viterbi
from .optim import adam, norm, sgd
from .pointwise import LinearWeights, dropout, linear_backward, linear_forward
from .recurrent import (
    RecurrentWeights,
    recurrent_backward,
    recurrent_forward,
    recurrent_plan,
)

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
