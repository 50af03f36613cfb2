"""The Elman cell (Elman 1990): ``h = tanh(z)`` or ``h = relu(z)``, as in ``torch.nn.RNN``."""

from .activations import fma, relu, tanh, where_positive

tanh_forward = tanh
relu_forward = relu


def tanh_backward(h, dh):
    """The gradient of z."""
    return dh * fma(h * h, -1.0, 1.0)


def relu_backward(h, dh):
    """The gradient of z; 0 at 0."""
    return where_positive(h, dh)
