"""The contract that every backend keeps, as a `Protocol`, and `get_backend`.

T steps, B sequences, I inputs, H hidden units, D directions (1 or 2; the second runs from each
sequence's own end to its start), G gates, N rows, V values of an integer input, O outputs, K tags.
float32 or float64, one of them throughout a call. All arrays are C-contiguous and lie where the
backend computes: `to_device` and `to_host` move them, `kernels.device` decides when.

A ragged batch is a `PackedBatch`: N is the sum of the lengths, so no kernel sees padding, and the
result of a sequence does not depend on the other sequences of the batch, bit for bit (on a GPU,
where products are not left to cuBLAS). Nor does anything depend on the number of threads. A dense
batch ``[T, B, I]`` is already in this layout.

Inputs are neither checked nor changed unless it says so; the layers check. Results are new arrays
that alias no input. An exception: a tape refers to x, which must stay as it is until `backward`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fastrnn import checks
from fastrnn.cells import Cell
from fastrnn.extras import needs
from fastrnn.packed import PackedBatch

from .options import AdamStep, SGDStep, StepMasks

Array = Any  # numpy.ndarray, or kernels.cuda.memory.DeviceArray
State = tuple[Array, ...]  # each state of the cell [D, B, H], sequences in the sorted order


BACKENDS = ("cpu", "cuda", "reference")
# What products of a backend's layers may be computed in; "float32" stands for the layer's dtype.
_HOST = ("float32", "bf16", "int8")
PRECISIONS = {"cpu": _HOST, "cuda": ("float32", "tf32", "bf16"), "reference": _HOST}
ONLY_INFERENCE = ("int8",)


def training_precisions(backend: str) -> tuple[str, ...]:
    """Those of `PRECISIONS` that have gradients."""
    checks.choice("backend", backend, BACKENDS)
    return tuple(name for name in PRECISIONS[backend] if name not in ONLY_INFERENCE)


class Backend(Protocol):
    """A module with these functions and classes."""

    __name__: str

    @property
    def takes_embedded(self) -> bool:
        """Whether recurrent layers of fused cells take `Embedded`."""

    # Memory

    @property
    def on_device(self) -> bool:
        """Whether arrays lie in a GPU's memory."""

    def empty(self, shape, dtype) -> Array:
        """Uninitialised memory where the backend computes."""

    def zero_state(self, shape, dtype) -> Array:
        """An array of zeros, to be read only."""

    def to_device(self, x: Any) -> Array:
        """A host array where the backend computes; not copied if it is there already."""

    def to_host(self, x: Array) -> Any:
        """The inverse: a NumPy array; waits for the computation of x."""

    def device_view(self, x: Any, name: str = "x") -> Array:
        """An array of another package in the GPU's memory, without a copy; ``name`` is for
        errors."""

    def to_caller(self, x: Any, array: Array) -> Any:
        """``array`` as the package that x belongs to knows it."""

    def stream_of(self, x: Any) -> AbstractContextManager:
        """A context in which everything is queued on the current stream of x's package."""

    def copy(self, x: Array) -> Array:
        """A copy of x."""

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Along the first axis."""

    def parameters_on(self, parameters: Any) -> Mapping[str, Array]:
        """The parameters by name, to be read."""

    def writable(self, parameters: Any) -> Array:
        """The flat vector of the parameters, to be written now."""

    def all_finite(self, x: Any) -> bool:
        """Whether no number of a C-contiguous array on the host is infinite or NaN."""

    # Padded arrays and packed rows

    def pack(self, x: Array, packed: PackedBatch, *, batch_first: bool = False) -> Array:
        """The rows ``[N, ...]`` of a padded ``[T, B, ...]`` (or ``[B, T, ...]``) array."""

    def unpack(self, rows: Array, packed: PackedBatch, *, batch_first: bool = False) -> Array:
        """The padded array of ``rows``; zero beyond each length."""

    def sort(self, state: Array, packed: PackedBatch) -> Array:
        """A ``[..., B, H]`` array in the sorted order of the sequences."""

    def unsort(self, state: Array, packed: PackedBatch) -> Array:
        """The inverse of `sort`."""

    # Recurrent layers

    def RecurrentWeights(
        self, cell: Cell, parameters: Sequence[Mapping[str, Array]], precision: str = "float32"
    ) -> Any:
        """The parameters of one layer, one mapping by name per direction, as the kernels want them.

        Names are those of the cell without the layer's suffix: ``weight_ih [G H, I]``,
        ``weight_hh [G H, H]``, ``bias_ih [G H]`` and ``bias_hh`` (both or neither), and the cell's
        own. Made again when the parameters change. ``precision`` is one of `PRECISIONS`.
        """

    def recurrent_forward(
        self,
        weights: Any,
        x: Array,
        packed: PackedBatch,
        state_0: State,
        *,
        training: bool,
        masks: StepMasks | None = None,
    ) -> tuple[Array, State, Any]:
        """``(y [N, D H], state_n, tape or None)``; x is [N, I], or int64 [N] for a one-hot input
        given by its index in [0, I), or `Embedded` where the backend takes it."""

    def recurrent_backward(
        self, weights: Any, tape: Any, dy: Array, dstate_n: State, *, need_dx: bool = True
    ) -> tuple[Array | None, State, list[dict[str, Array]]]:
        """``(dx [N, I] or None, dstate_0, gradients by name for each direction)``.

        The tape is used up. dx is None for an integer input, and [V, I] for an embedded one.
        """

    def recurrent_plan(self, layers: Sequence[Any], steps: int, batch: int) -> Callable | None:
        """``plan(x, state, unbatched)`` for dense inputs of one shape, through all layers, or None
        where the backend has none.

        x has T B rows of I numbers, and a state is [L D, B, H] ([L D, H] if ``unbatched``), or
        None. The plan returns ``(y, state)`` in the shapes of its arguments, and on a device in
        arrays of x's package; or None where these are not plain arrays of the right type and size
        or not finite, to be refused by the caller.
        """

    # The linear layer

    def LinearWeights(self, weight: Array, bias: Array | None, precision: str = "float32") -> Any:
        """``weight [O, I]`` and ``bias [O]``, as the kernels want them."""

    def linear_forward(self, weights: Any, x: Array, *, training: bool = False) -> Array:
        """``x [N, I] @ weight.T + bias``, [N, O]; ``training``: as gradients are computed."""

    def linear_backward(
        self, weights: Any, x: Array, dy: Array, *, need_dx: bool = True
    ) -> tuple[Array | None, Array, Array]:
        """``(dx or None, dweight, dbias)`` for dy [N, O]."""

    # The linear-chain CRF

    def crf_gradient(
        self, scores: Array, tags: Any, packed: PackedBatch, pair: Any, start: Any, end: Any
    ) -> tuple[Any, Array, Any, Any, Any]:
        """``(loss [B], dscores [N, K], dpair, dstart, dend)`` in float64.

        The loss of a sequence is -log p(tags), summed over the batch for the gradients; without
        tags it is the log of the sum over all paths, so that dscores are the marginal
        probabilities of the tags. Minus infinity in ``pair [K, K]``, ``start`` or ``end [K]``
        forbids.
        """

    def crf_viterbi(
        self, scores: Array, packed: PackedBatch, pair: Any, start: Any, end: Any
    ) -> Any:
        """The tag of each row on its sequence's best path, int64 [N], on the host."""

    # Pointwise functions. Integer arguments (ids, indices, targets) lie on the host.

    def dropout(self, x: Array, p: float, key: int) -> None:
        """Multiply x in place by 0 with probability p, else by ``1 / (1 - p)``; the choice is a
        function of the key and the position."""

    def scale(self, x: Array, mask: Any, indices: Any) -> None:
        """``x *= mask[indices]`` in place; x [N, K], mask [B, K] on the host."""

    def embedding_forward(self, table: Array, ids: Any) -> Array:
        """``table[ids]`` for a table [V, E]; IndexError for an id out of range."""

    def embedding_backward(self, dy: Array, ids: Any, rows: int) -> Array:
        """The gradient of the whole table, [rows, E]."""

    def cross_entropy(self, logits: Array, targets: Any, weights: Any) -> tuple[float, Array]:
        """``(loss, dlogits)`` for logits [N, V]: the sum over the rows of weights [N] (float64)
        times the loss in nats. Targets whose weight is not 0 are in range."""

    # Optimizers: one pass over the flat vectors [n], in place

    def norm(self, x: Array) -> float:
        """The Euclidean norm, summed in float64 in a fixed order."""

    def sgd(self, w: Array, g: Array, velocity: Array, options: SGDStep) -> None:
        """See `SGDStep`."""

    def adam(self, w: Array, g: Array, moments: tuple[Array, Array], options: AdamStep) -> None:
        """See `AdamStep`."""


class UsesBackend:
    """What computes with a backend: pickles and copies refer to the backend by its name."""

    _kernels: Backend

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kernels": self._kernels.__name__.rpartition(".")[2]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._kernels = get_backend(state["_kernels"])


def get_backend(name: str) -> Backend:
    """The backend called ``name``: ``"cpu"``, ``"cuda"``, or ``"reference"`` (plain NumPy, slow).

    Raises
    ------
    ValueError
        There is no backend of that name, or no GPU.
    ImportError
        "cuda" without the extra of that name.
    """
    # Imported late: the CPU backend imports Numba, and the CUDA backend looks for a GPU. The
    # assignments let mypy check each module against the protocol.
    checks.choice("backend", name, BACKENDS)
    if name == "cpu":
        from . import cpu

        backend: Backend = cpu
    elif name == "cuda":
        try:
            from . import cuda
        except ModuleNotFoundError as error:
            raise ImportError(needs("the backend 'cuda' needs more packages", "cuda")) from error
        cuda.require()
        backend = cuda
    else:
        from . import reference

        backend = reference
    return backend
