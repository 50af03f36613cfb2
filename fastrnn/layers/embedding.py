"""The embedding layer: rows of a table by their index."""

from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn._gather import scatter_add_rows
from fastrnn.kernels.device import Door
from fastrnn.types import BackendName, DType, Input

from .base import PackedLayer


class Embedding(PackedLayer):
    """``y = weight[ids]``, with the names and shapes of ``torch.nn.Embedding``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        V and E: the table has V rows of E values.
    dtype : {"float32", "float64"}
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial table, which is standard normal.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import fastrnn
    >>> embedding = fastrnn.Embedding(10, 3, seed=0)
    >>> y, tape = embedding.forward([[1, 2], [3, 1]])
    >>> rows, gradients = embedding.backward(tape, y, sparse=True)["weight"]
    >>> y.shape, rows.tolist()
    ((2, 2, 3), [1, 2, 3])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: DType = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        self.num_embeddings = checks.integer("num_embeddings", num_embeddings)
        self.embedding_dim = checks.integer("embedding_dim", embedding_dim)
        table = checks.generator("seed", seed).standard_normal((num_embeddings, embedding_dim))
        super().__init__({"weight": table}, checks.float_dtype("dtype", dtype), backend)

    def _pack(self, precision):
        return self._kernels.parameters_on(self.parameters)["weight"]

    # Rows in, rows out: for models. Ids lie on the host and are checked; other arrays lie where the
    # backend computes and are not.

    def rows_forward(self, ids: np.ndarray):
        """``y [N, E]`` for ``ids [N]``."""
        return self._kernels.embedding_forward(self._weights(), ids)

    def rows_backward(self, ids: np.ndarray, dy) -> dict:
        """The gradient of the table for ``dy [N, E]``."""
        return {"weight": self._kernels.embedding_backward(dy, ids, self.num_embeddings)}

    def __repr__(self) -> str:
        return (
            f"Embedding({self.num_embeddings}, {self.embedding_dim}, dtype={self.dtype.name!r}, "
            f"backend={self.backend!r})"
        )

    def __call__(self, ids: Input) -> np.ndarray:
        """``weight[ids]``, [..., E].

        Raises
        ------
        IndexError
            An id is not in ``[0, V)``; the message names its position.
        TypeError
            ``ids`` are not integers.
        """
        return self.forward(ids)[0]

    def forward(self, ids: Input) -> tuple[np.ndarray, np.ndarray]:
        """``(y, tape)``."""
        ids = checks.integer_array("ids", ids)
        y = self._kernels.to_host(self.rows_forward(ids.reshape(-1)))
        return y.reshape(*ids.shape, self.embedding_dim), ids

    def backward(self, tape: np.ndarray, dy: Input, *, sparse: bool = False) -> dict[str, Any]:
        """The gradient of the table.

        Parameters
        ----------
        tape : array
            From `forward`.
        dy : array_like [..., E]
            Gradient of y.
        sparse : bool, default False
            Return ``{"weight": (rows [R], gradients [R, E])}`` with only the rows that occur, in
            ascending order, instead of the gradient of the whole table.
        """
        tape = checks.integer_array("tape", tape)
        checks.below("tape", "id", tape, self.num_embeddings)  # the kernels do not check
        sparse, door = checks.flag("sparse", sparse), Door(self._kernels, dy)
        with door.stream():
            dy = door.take("dy", dy, self.dtype, (*tape.shape, self.embedding_dim))
            dy, ids = dy.reshape(-1, self.embedding_dim), tape.reshape(-1)
            if sparse:
                dy = self._kernels.to_host(dy)
                return {"weight": scatter_add_rows(dy, ids, num_rows=self.num_embeddings)}
            grads = self.rows_backward(ids, dy)
            return {name: door.give(g) for name, g in grads.items()}
