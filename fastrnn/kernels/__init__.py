"""Arrays in, arrays out: the contract that every backend keeps.

T steps, B sequences, I inputs, H hidden units, D directions (1 or 2, the second runs from
each sequence's own end), G gates (4), N rows, V values of an integer input, O outputs.
float32 and float64, one type throughout a call. Everything is C-contiguous.

A ragged batch is laid out by `rows.Rows`: N = sum of the lengths, so no kernel meets
padding, and the result of a sequence does not depend on its batch mates, bit for bit; nor
does anything depend on the number of threads. A dense batch ``[T, B, I]`` is its own layout.

A backend is a module with

``LSTMWeights(parameters)``
    The parameters of one layer, a sequence over D of ``(weight_ih [4H, I], weight_hh
    [4H, H], bias_ih [4H], bias_hh [4H])``, biases both None or both there, in whatever
    form the backend likes best. Made again when the parameters change.
``lstm_forward(weights, x, rows, h_0, c_0, *, training)``
    ``(y [N, D H], h_n [D, B, H], c_n [D, B, H], tape or None)``; x [N, I], or int64 [N]
    for a one-hot input given by its index, in [0, I); states in the order of the rows.
``lstm_backward(weights, tape, dy, dh_n, dc_n, *, need_dx=True)``
    ``(dx [N, I] or None, dh_0, dc_0, [(dW_ih, dW_hh, db)] over D)``. The tape is used up;
    dx is None for an integer input.
``LinearWeights(weight [O, I], bias [O] or None)``, ``linear_forward(weights, x [N, I])``,
``linear_backward(weights, x, dy [N, O], *, need_dx=True) -> (dx or None, dweight, dbias)``

Inputs are neither checked nor changed (layers check); results are new arrays.
"""

from types import ModuleType

BACKENDS = ("cpu", "reference")


def get_backend(name: str) -> ModuleType:
    """The backend called ``name``: ``"cpu"``, or ``"reference"`` (plain NumPy, slow).

    Raises
    ------
    ValueError
        There is none of that name.
    """
    # Imported late: the CPU backend brings Numba.
    if name == "cpu":
        from . import cpu

        return cpu
    if name == "reference":
        from . import reference_backend

        return reference_backend
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
