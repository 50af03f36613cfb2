"""The activations of every cell, written once over an abstract number.

``x`` may be a Python or NumPy number, an array, or (compiled, see
``kernels/cpu/simd.py``) one machine vector. The primitives `fma`, `clamp`, `pow2` and
`where_positive` are what a compiler overloads for its own number type.

`fma` is explicit so that rounding never depends on what an optimiser fuses:
a row gives the same bits in a tile of one row as in a tile of six.
"""

import numpy as np

# Rational minimax approximation of tanh in float32, degree 13 over 6 (the one used by Eigen
# and XLA): absolute error below 1e-7 on [-7.9, 7.9], and 2.7e-7 where it is cut off beyond.
_TANH_P = tuple(
    map(
        np.float32,
        (
            -2.76076847742355e-16,
            2.00018790482477e-13,
            -8.60467152213735e-11,
            5.12229709037114e-08,
            1.48572235717979e-05,
            6.37261928875436e-04,
            4.89352455891786e-03,
        ),
    )
)
_TANH_Q = tuple(
    map(
        np.float32,
        (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
    )
)
_TANH_LIMIT = np.float32(7.9)

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
# 1/k! for k = 13 .. 1: on |r| <= ln(2)/2 the next term is below 1e-17.
_EXPM1 = tuple(float(1.0 / np.prod(np.arange(1.0, k + 1))) for k in range(13, 0, -1))
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it rounds a double to an integer


def fma(a, b, c):
    """``a * b + c``, fused where the machine can."""
    return a * b + c


def clamp(x, limit):
    """``x`` limited to ``[-limit, limit]``; NaN stays NaN."""
    return np.clip(x, -limit, limit)


def pow2(n):
    """``2 ** n`` for a float64 that holds a small integer."""
    return np.ldexp(1.0, np.asarray(n).astype(int))


def where_positive(x, y):
    """``y`` where x is positive (or NaN), 0 elsewhere."""
    return np.where(x <= 0, 0, y)


def tanh32(x):
    x = clamp(x, _TANH_LIMIT)
    x2 = x * x
    p = fma(x2, _TANH_P[0], _TANH_P[1])
    p = fma(x2, p, _TANH_P[2])
    p = fma(x2, p, _TANH_P[3])
    p = fma(x2, p, _TANH_P[4])
    p = fma(x2, p, _TANH_P[5])
    p = fma(x2, p, _TANH_P[6])
    q = fma(x2, _TANH_Q[0], _TANH_Q[1])
    q = fma(x2, q, _TANH_Q[2])
    q = fma(x2, q, _TANH_Q[3])
    return x * p / q


def tanh64(x):
    """``expm1(2x) / (expm1(2x) + 2)``, which keeps its relative precision near 0."""
    y = clamp(x * 2.0, 40.0)
    n = (y * _LOG2_E + _ROUND) - _ROUND
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, y))
    p = fma(r, _EXPM1[0], _EXPM1[1])
    p = fma(r, p, _EXPM1[2])
    p = fma(r, p, _EXPM1[3])
    p = fma(r, p, _EXPM1[4])
    p = fma(r, p, _EXPM1[5])
    p = fma(r, p, _EXPM1[6])
    p = fma(r, p, _EXPM1[7])
    p = fma(r, p, _EXPM1[8])
    p = fma(r, p, _EXPM1[9])
    p = fma(r, p, _EXPM1[10])
    p = fma(r, p, _EXPM1[11])
    p = fma(r, p, _EXPM1[12])
    s = pow2(n)
    e = fma(s, p * r, s - 1.0)
    return e / (e + 2.0)


def tanh(x):
    """Hyperbolic tangent in the precision of ``x``."""
    return tanh32(x) if np.asarray(x).dtype == np.float32 else tanh64(x)


def sigmoid(x):
    """Logistic function, as ``tanh(x / 2) / 2 + 1 / 2``."""
    return fma(tanh(x * 0.5), 0.5, 0.5)


def relu(x):
    """Rectified linear unit, ``max(x, 0)``."""
    return where_positive(x, x)
