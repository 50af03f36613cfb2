"""The GRU cell (Cho et al. 2014), with the reset gate after the product (as in cuDNN).

The equations of ``torch.nn.GRU``, gate order r, z, n; u is the update gate z, which also
gives ``z_r`` and ``z_u``, the sums of both products, and x_n and h_n, which stay apart:

    r = sigmoid(z_r)   u = sigmoid(z_u)   n = tanh(x_n + r * h_n)
    h = (1 - u) * n + u * h_prev
"""

from .activations import fma, sigmoid, tanh


def forward(x_n, z_r, z_u, h_n, h_prev):
    """One step from the gates' pre-activations: ``(n, r, u, h)``."""
    r = sigmoid(z_r)
    u = sigmoid(z_u)
    n = tanh(fma(r, h_n, x_n))
    return n, r, u, fma(u, h_prev - n, n)


def backward(n, r, u, h_n, h_prev, dh):
    """Gradients of one step: ``(dx_n, dz_r, dz_u, dh_n, dh_prev)``.

    ``dh_prev`` is what reaches h_prev past the products.
    """
    dx_n = dh * (1.0 - u) * fma(n * n, -1.0, 1.0)
    dz_r = dx_n * h_n * (r * (1.0 - r))
    dz_u = dh * (h_prev - n) * (u * (1.0 - u))
    return dx_n, dz_r, dz_u, dx_n * r, dh * u
