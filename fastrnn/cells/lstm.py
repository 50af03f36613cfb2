"""The LSTM cell (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

The equations of ``torch.nn.LSTM``, gate order i, f, g, o, over any number type:

    i = sigmoid(z_i)   f = sigmoid(z_f)   g = tanh(z_g)   o = sigmoid(z_o)
    c = f * c_prev + i * g
    h = o * tanh(c)
"""

from .activations import fma, sigmoid, tanh


def forward(z_i, z_f, z_g, z_o, c_prev):
    """One step from the gates' pre-activations: ``(i, f, g, o, c, h)``."""
    i = sigmoid(z_i)
    f = sigmoid(z_f)
    g = tanh(z_g)
    o = sigmoid(z_o)
    c = fma(f, c_prev, i * g)
    return i, f, g, o, c, o * tanh(c)


def backward(i, f, g, o, c_prev, dh, dc):
    """Gradients of one step: ``(dz_i, dz_f, dz_g, dz_o, dc_prev)``.

    ``dh`` and ``dc`` are the gradients that reach h and c from later steps and
    from the output; c is computed again rather than kept.
    """
    tanh_c = tanh(fma(f, c_prev, i * g))
    do = dh * tanh_c
    dc = fma(dh * o, fma(tanh_c * tanh_c, -1.0, 1.0), dc)
    dz_i = dc * g * (i * (1.0 - i))
    dz_f = dc * c_prev * (f * (1.0 - f))
    dz_g = dc * i * fma(g * g, -1.0, 1.0)
    dz_o = do * (o * (1.0 - o))
    return dz_i, dz_f, dz_g, dz_o, dc * f
