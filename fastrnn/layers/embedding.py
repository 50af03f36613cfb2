"""The embedding layer: rows of a table by their index."""

import numpy as np

from fastrnn import checks
from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.parameters import Parameters


class Embedding:
    """``y = weight[ids]``, with the names and shapes of ``torch.nn.Embedding``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        V rows of E numbers.
    dtype : {"float32", "float64"}
    seed : int, optional
        Of the initial table, standard normal.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype="float32", seed: int | None = None
    ):
        self.num_embeddings = checks.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = checks.positive_int("embedding_dim", embedding_dim)
        table = np.random.default_rng(seed).standard_normal((num_embeddings, embedding_dim))
        self.parameters = Parameters({"weight": table}, checks.float_dtype("dtype", dtype))

    @property
    def dtype(self) -> np.dtype:
        """Of the table."""
        return self.parameters.dtype

    def __call__(self, ids) -> np.ndarray:
        """``weight[ids]``, [..., E].

        Raises
        ------
        IndexError
            An id is not in ``[0, V)``; the message has its position.
        TypeError
            ``ids`` are not integers.
        """
        return self.forward(ids)[0]

    def forward(self, ids) -> tuple[np.ndarray, np.ndarray]:
        """``(y, tape)``."""
        ids = checks.integer_array("ids", ids)
        out = np.empty((ids.size, self.embedding_dim), self.dtype)
        gather_rows(self.parameters["weight"], ids.reshape(-1), out)
        return out.reshape(*ids.shape, self.embedding_dim), ids

    def backward(self, tape: np.ndarray, dy, *, sparse: bool = False) -> dict:
        """The gradient of the table.

        Parameters
        ----------
        tape : array
            From `forward`.
        dy : array_like [..., E]
            Gradient of y.
        sparse : bool, default False
            Give ``{"weight": (rows [R], gradients [R, E])}``, the rows that occurred in
            ascending order, instead of the whole table's gradient.
        """
        dy = checks.real_array("dy", dy, self.dtype, (*tape.shape, self.embedding_dim))
        dy, ids = dy.reshape(-1, self.embedding_dim), tape.reshape(-1)
        if sparse:
            return {"weight": scatter_add_rows(dy, ids, num_rows=self.num_embeddings)}
        out = np.zeros((self.num_embeddings, self.embedding_dim), self.dtype)
        scatter_add_rows(dy, ids, out=out)
        return {"weight": out}

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the table under PyTorch's name."""
        return self.parameters.state_dict()

    def load_state_dict(self, mapping) -> None:
        """Take over a table; see `LSTM.load_state_dict`."""
        self.parameters.load_state_dict(mapping)
