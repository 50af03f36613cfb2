"""The Elman cell (Elman 1990): ``h = tanh(z)`` or ``h = relu(z)``, as in ``torch.nn.RNN``."""

from . import oracle
from .spec import Cell, Equations, Reference


def equations(activation) -> Equations:
    function, slope = activation

    def forward(z, state, p):
        h = function(z[0])
        return (h,), (h,)

    def backward(saved, state, p, dstate):
        return (dstate[0] * slope(saved[0]),), (0.0,), ()

    return Equations(forward, backward)


def reference(activation) -> Reference:
    function, d_function = oracle.function(activation)

    def forward(x, state, w):
        (h,) = state
        h_new = function(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])
        return (h_new,), (h_new,)

    def backward(x, state, w, cache, dstate):
        dz = d_function(cache[0], dstate[0])
        db = dz.sum(axis=0)
        dw = {"weight_ih": dz.T @ x, "weight_hh": dz.T @ state[0], "bias_ih": db, "bias_hh": db}
        return dz @ w["weight_ih"], (dz @ w["weight_hh"],), dw

    return Reference(forward, backward)


RNN_TANH = Cell(
    name="rnn",
    gates=("h",),
    states=("h",),
    accumulators=1,
    input_gates=("h",),
    recurrent_gates=("h",),
    equations=equations,
    activations=("tanh",),
    reference=reference,
)
RNN_RELU = RNN_TANH.with_activations("relu")
