"""Arrays in, arrays out: the contract that every backend keeps.

T steps, B sequences, I inputs, H hidden units, D directions (1 or 2, the second runs from
each sequence's own end), G gates (LSTM 4, GRU 3, RNN 1), N rows, V values of an integer
input, O outputs. float32 and float64, one type throughout a call. Everything is C-contiguous.

A ragged batch is laid out by `rows.Rows`: N = sum of the lengths, so no kernel meets
padding, and the result of a sequence does not depend on its batch mates, bit for bit; nor
does anything depend on the number of threads. A dense batch ``[T, B, I]`` is its own layout.

A backend is a module with

``RecurrentWeights(cell, parameters)``
    The parameters of one layer in whatever form the backend likes best, made again when they
    change. ``cell`` is "lstm", "gru", "rnn_tanh" or "rnn_relu"; ``parameters`` a sequence over D
    of ``(weight_ih [G H, I], weight_hh [G H, H], bias_ih [G H], bias_hh)``, biases both None or
    both there, gates in PyTorch's order.
``recurrent_forward(weights, x, rows, state_0, *, training)``
    ``(y [N, D H], state_n, tape or None)``; x [N, I], or int64 [N] for a one-hot input given by
    its index, in [0, I). A state is (h, c) for the LSTM and (h,) for others, each [D, B, H] in
    the order of the rows.
``recurrent_backward(weights, tape, dy, dstate_n, *, need_dx=True)``
    ``(dx [N, I] or None, dstate_0, [(dW_ih, dW_hh, db_ih, db_hh)] over D)``. The tape is used up;
    dx is None for an integer input.
``recurrent_step(layers, x, state)``
    ``(y [B, H], state, finite)``: one step of x [B, I] through the one direction of all layers,
    a list of `RecurrentWeights`; a state's parts are [L, B, H]. If ``finite`` is False a number
    on the way was not finite, and the caller had better look at what went in: the one check that
    kernels make, as a pass of its own would take longer than the step.
``LinearWeights(weight [O, I], bias [O] or None)``, ``linear_forward(weights, x [N, I])``,
``linear_backward(weights, x, dy [N, O], *, need_dx=True) -> (dx or None, dweight, dbias)``
``crf_gradient(scores [N, K], tags [N] or None, rows, pair [K, K], start [K], end [K])``
    ``(loss [B], dscores [N, K], dpair, dstart, dend)`` in float64, of -log p(tags) summed over the
    batch, a loss for each sequence in the order of the rows; without tags, of the log of the sum
    over all paths, so that dscores are the tags' probabilities. Minus infinity forbids.
``crf_viterbi(scores, rows, pair, start, end)``
    The tag of each row on its sequence's best path, int64 [N].
``dropout(x, p, key)``
    Multiply x in place by 0 or ``1 / (1 - p)``, the same for the same key and place in x.
``scale(x [N, K], mask [B, K], rows [N])``
    ``x *= mask[rows]``, in place; the mask and the rows are the host's.
``embedding_forward(table [V, E], ids [N])``, ``embedding_backward(dy [N, E], ids, V)``
    Rows of a table, and the gradient of all of it; ids are the host's, and checked.
``values(parameters)``
    The parameters by name, where `RecurrentWeights` and others want them.
``to_device(x)``, ``to_host(x)``, ``empty(shape, dtype)``, ``concatenate(arrays)``
    Memory where the backend computes; for most that is the host. `concatenate` goes along the
    first axis.
``update``
    A module with ``norm``, ``sgd`` and ``adam``, see `kernels.cpu.update`.

Inputs are neither checked nor changed but where it says so (layers check); results are new arrays.

The reference has no ``update``. The backend "cuda" takes arrays of the device as well, see
`kernels.cuda.memory`, and returns what came from the host to the host. It also has ``like``,
``on_stream_of`` and ``DeviceRows`` for what is around them, and ``cross_entropy`` of logits there.
"""

from types import ModuleType
from typing import Any

BACKENDS = ("cpu", "cuda", "reference")
_DLPACK_CUDA = 2  # kDLCUDA of dlpack.h


def get_backend(name: str) -> ModuleType:
    """The backend called ``name``: ``"cpu"``, ``"cuda"``, or ``"reference"`` (plain NumPy, slow).

    Raises
    ------
    ValueError
        There is none of that name, or no GPU.
    ImportError
        "cuda" without the extra of that name.
    """
    # Imported late: the CPU backend brings Numba.
    if name == "cpu":
        from . import cpu

        return cpu
    if name == "cuda":
        from . import cuda

        cuda.require()
        return cuda
    if name == "reference":
        from . import reference_backend

        return reference_backend
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")


def is_on_device(x: Any) -> bool:
    """Whether x is an array in a GPU's memory, whoever put it there."""
    if hasattr(x, "__cuda_array_interface__") or hasattr(x, "copy_to_host"):
        return True
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == _DLPACK_CUDA


def backend_of(x: Any) -> ModuleType:
    """The backend where an array lies: "cuda" for one on a device, else "cpu"."""
    return get_backend("cuda" if is_on_device(x) else "cpu")
