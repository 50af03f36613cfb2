"""Activation functions, written once over an abstract number.

``x`` may be a Python or NumPy number, an array, or (compiled, see
``kernels/native/source/simd.py``) one machine vector. The primitives (`PRIMITIVES`) are what a
compiler replaces for its own number type; everything else is made of them.

`fma` is explicit so that rounding never depends on what an optimiser fuses: a row gives the same
bits in a tile of one row as in a tile of six.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

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
# The same for float32; ln(2) in a part with few bits, whose multiples are exact, and the rest.
_ROUND32 = 12582912.0
_LN2_HIGH32 = 0.693359375
_LN2_LOW32 = -2.12194440e-04
# 1/k for k = 33, 31 .. 1: log((1 + s) / (1 - s)) = 2 (s + s**3 / 3 + ...), s <= 1/3.
_ATANH = tuple(1.0 / k for k in range(33, 0, -2))


def fma(a, b, c):
    """``a * b + c``, fused where the machine can."""
    return a * b + c


def clamp(x, limit):
    """``x`` limited to ``[-limit, limit]``; NaN stays NaN."""
    return np.clip(x, -limit, limit)


def pow2(n):
    """``2 ** n`` for a floating-point n that holds a small integer."""
    return np.ldexp(np.asarray(n) * 0 + 1, np.asarray(n).astype(int))


def where_positive(x, y):
    """``y`` where x is positive or NaN, 0 elsewhere."""
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


def _exp_parts32(x):
    """``(s, t)`` with ``exp(x) = s + s t``: s a power of two, t small."""
    y = clamp(x, 87.0)
    n = (y * _LOG2_E + _ROUND32) - _ROUND32
    r = fma(n, -_LN2_LOW32, fma(n, -_LN2_HIGH32, y))
    p = fma(r, _EXPM1[5], _EXPM1[6])
    for c in _EXPM1[7:]:
        p = fma(r, p, c)
    return pow2(n), p * r


def _exp_parts64(x):
    y = clamp(x, 700.0)
    n = (y * _LOG2_E + _ROUND) - _ROUND
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, y))
    p = fma(r, _EXPM1[0], _EXPM1[1])
    for c in _EXPM1[2:]:
        p = fma(r, p, c)
    return pow2(n), p * r


def expm1_32(x):
    s, t = _exp_parts32(x)
    return fma(s, t, s - 1.0)


def expm1_64(x):
    s, t = _exp_parts64(x)
    return fma(s, t, s - 1.0)


def expm1(x):
    """``exp(x) - 1`` in the precision of ``x``."""
    return expm1_32(x) if np.asarray(x).dtype == np.float32 else expm1_64(x)


def exp32(x):
    s, t = _exp_parts32(x)
    return where_positive(x + 87.0, fma(s, t, s))


def exp64(x):
    s, t = _exp_parts64(x)
    return where_positive(x + 700.0, fma(s, t, s))


def exp(x):
    """``e ** x`` in the precision of ``x``; 0 where that is close to underflow."""
    return exp32(x) if np.asarray(x).dtype == np.float32 else exp64(x)


def log1p(x):
    """``log(1 + x)`` for x in [0, 1]."""
    s = x / (x + 2.0)
    s2 = s * s
    p = fma(s2, _ATANH[0], _ATANH[1])
    for c in _ATANH[2:]:
        p = fma(s2, p, c)
    return s * p * 2.0


PRIMITIVES = (fma, clamp, pow2, where_positive, tanh, expm1, exp, log1p)


def sigmoid(x):
    """Logistic function, as ``tanh(x / 2) / 2 + 1 / 2``."""
    return fma(tanh(x * 0.5), 0.5, 0.5)


def relu(x):
    """Rectified linear unit, ``max(x, 0)``."""
    return where_positive(x, x)


class Activation(NamedTuple):
    """A function, and its derivative as a function of its result."""

    function: Callable
    slope: Callable


# The functions of the ONNX operators RNN, GRU and LSTM. Each takes alpha and beta and returns
# ``(function, slope)``; x is the input and y the result.


def _sigmoid(alpha, beta):
    def slope(y):
        return y * (1.0 - y)

    return sigmoid, slope


def _tanh(alpha, beta):
    def slope(y):
        return fma(y * y, -1.0, 1.0)

    return tanh, slope


def _relu(alpha, beta):
    def slope(y):
        return where_positive(y, 1.0)

    return relu, slope


def _affine(alpha, beta):
    def function(x):
        return x * alpha + beta

    def slope(y):
        return y * 0.0 + alpha

    return function, slope


def _leaky_relu(alpha, beta):
    def function(x):
        positive = where_positive(x, x)
        return positive + (x - positive) * alpha

    def slope(y):
        return where_positive(y, 1.0 - alpha) + alpha

    return function, slope


def _thresholded_relu(alpha, beta):
    def function(x):
        return where_positive(x - alpha, x)

    def slope(y):
        return where_positive(y * y, 1.0)

    return function, slope


def _scaled_tanh(alpha, beta):
    def function(x):
        return tanh(x * beta) * alpha

    def slope(y):
        return (alpha - y * y / alpha) * beta

    return function, slope


def _hard_sigmoid(alpha, beta):
    def function(x):
        return clamp(x * alpha + (beta - 0.5), 0.5) + 0.5

    def slope(y):
        return where_positive(y, where_positive(1.0 - y, alpha))

    return function, slope


def _elu(alpha, beta):
    def function(x):
        positive = where_positive(x, x)
        return positive + expm1(x - positive) * alpha

    def slope(y):
        positive = where_positive(y, y)
        return where_positive(y, 1.0 - alpha) + (y - positive) + alpha

    return function, slope


def _softsign(alpha, beta):
    def function(x):
        return x / (where_positive(x, x) * 2.0 - x + 1.0)

    def slope(y):
        distance = 1.0 - (where_positive(y, y) * 2.0 - y)
        return distance * distance

    return function, slope


def _softplus(alpha, beta):
    def function(x):
        positive = where_positive(x, x)
        return positive + log1p(expm1(x - positive * 2.0) + 1.0)

    def slope(y):
        return expm1(y * -1.0) * -1.0

    return function, slope


class _Family(NamedTuple):
    make: Callable
    alpha: float | None = None  # ONNX's default, None where the function has no such parameter
    beta: float | None = None


ACTIVATIONS = {
    "sigmoid": _Family(_sigmoid),
    "tanh": _Family(_tanh),
    "relu": _Family(_relu),
    "affine": _Family(_affine, 1.0, 0.0),
    "leaky_relu": _Family(_leaky_relu, 0.01),
    "thresholded_relu": _Family(_thresholded_relu, 1.0),
    "scaled_tanh": _Family(_scaled_tanh, 1.0, 1.0),
    "hard_sigmoid": _Family(_hard_sigmoid, 0.2, 0.5),
    "elu": _Family(_elu, 1.0),
    "softsign": _Family(_softsign),
    "softplus": _Family(_softplus),
}


# Functions whose results stay finite at every step of a unit without weights.
BOUNDED = ("sigmoid", "tanh", "relu", "softsign")


def parse(spec: str) -> tuple[str, tuple[float, ...]]:
    """``"elu"`` or ``"elu(0.5)"`` as a name and its parameters, alpha and beta.

    Raises
    ------
    ValueError
        There is no such function, or it takes other parameters.
    """
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", spec) if isinstance(spec, str) else None
    if match is None or match[1] not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"activations must be one of {names}; got {spec!r}")
    family = ACTIVATIONS[match[1]]
    values = [v for v in (family.alpha, family.beta) if v is not None]
    try:
        given = [float(v) for v in match[2].split(",")] if match[2] else []
    except ValueError:
        given = values + [0.0]
    if len(given) > len(values):
        raise ValueError(f"{match[1]} takes {len(values)} numbers, got {spec!r}")
    parameters = tuple(given + values[len(given) :])
    if not np.isfinite(parameters).all():
        raise ValueError(f"{match[1]} takes finite numbers, got {spec!r}")
    # The slopes are functions of the result, which must tell on which side of 0 the input was.
    if match[1] in ("leaky_relu", "elu") and parameters[0] < 0:
        raise ValueError(f"{match[1]} takes a number of at least 0, got {spec!r}")
    if match[1] == "scaled_tanh" and parameters[0] == 0:
        raise ValueError(f"scaled_tanh takes a first number that is not 0, got {spec!r}")
    return match[1], parameters


def activation(spec: str) -> Activation:
    """The activation function of that name, over any kind of number; see `parse`."""
    name, parameters = parse(spec)
    function, slope = ACTIVATIONS[name].make(*(*parameters, 0.0, 0.0)[:2])
    return Activation(function, slope)
