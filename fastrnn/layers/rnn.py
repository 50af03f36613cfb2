"""The recurrent layers. Their common interface is in recurrent.py."""

from typing import Any, Literal

import numpy as np

from fastrnn import checks

from .recurrent import Recurrent


class LSTM(Recurrent[tuple[np.ndarray, np.ndarray]]):
    """Stacked long short-term memory, in one direction or both.

    The equations, parameter names and shapes are those of ``torch.nn.LSTM`` (Hochreiter &
    Schmidhuber 1997, with the forget gate of Gers et al. 2000; gate order i, f, g, o).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, features per step and units per direction.
    num_layers : int, default 1
        Number of stacked layers.
    variant : str, optional
        Another cell of the family:

        - "peephole": gates also see c (Gers & Schmidhuber 2000): ``weight_ci``, ``weight_cf``,
          ``weight_co``, [H] each.
        - "coupled": the forget gate is ``1 - i`` (Greff et al. 2017); gate order i, g, o.
        - "layer_norm": layer normalisation (Ba et al. 2016): ``gain_ih``, ``gain_hh``, [4 H] each,
          ``gain_c`` and ``bias_c``, [H] each. A step is several kernels, so it is slower.
        - "clipped": c is limited to ``[-cell_clip, cell_clip]`` (Sak et al. 2014).
    proj_size : int, default 0
        P, the size of h if above 0: h is projected by ``weight_hr [P, H]`` (Sak et al. 2014), as
        in PyTorch. A step is several kernels, so it is slower.
    bias : bool, default True
        Whether to have ``bias_ih`` and ``bias_hh``.
    batch_first : bool, default False
        Sequences are ``[B, T, I]`` instead of ``[T, B, I]``; states are not affected.
    dropout : float, default 0.0
        Dropout probability of the outputs of each layer but the last, in `forward` only.
    bidirectional : bool, default False
        Add a second direction that starts at each sequence's own end; D is then 2, else 1.
    activations : sequence of str, optional
        Of the gates, of the candidate g and of c in h; ("sigmoid", "tanh", "tanh") when left out.
        Names are "sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu",
        "scaled_tanh", "hard_sigmoid", "elu", "softsign" and "softplus", with ONNX's parameters
        alpha and beta: "elu(0.5)", "affine(2, 1)".
    zoneout : float or (float, float), default 0.0
        Probability that a unit keeps its previous h, or h and c, in `forward`; inference uses the
        expected value (Krueger et al. 2016).
    recurrent_dropout : float, default 0.0
        Dropout probability of h on its way to the next step, in `forward` only. The mask of a
        sequence is the same at every step (Gal & Ghahramani 2016).
    weight_dropout : float, default 0.0
        Dropout probability of each number of the weights of h, in `forward` only, with one mask for
        the whole batch and all steps (DropConnect, Merity et al. 2018).
    constants : mapping of str to float, optional
        ``{"cell_clip": 3.0}`` for the variant "clipped".
    dtype : {"float32", "float64"}
    precision : {"float32", "bf16", "int8"}, default "float32"
        What matrix products are computed in, for the dtype float32; sums, states, gradients and
        the parameters themselves stay in float32. "bf16": bfloat16, two products in each
        instruction on CPUs that have it (AVX512-BF16, AMX); on others only the weights, in
        inference. "int8": weights in 8 bits, x and h in 16, with a scale for each row, for
        inference. "float32" is also the value for the dtype float64. With the backend "cuda":
        "float32", "tf32" or "bf16", for ``weight_hh`` of LSTMs on GPUs with thread-block clusters.
        See docs/precision.md.
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial weights and dropout. Input weights are Glorot uniform per gate,
        recurrent weights orthogonal per gate, the forget gate's bias is 1, other biases are 0.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> lstm = fastrnn.LSTM(8, 16, bidirectional=True, seed=0)
    >>> y, (h_n, c_n) = lstm(np.ones((5, 3, 8)), lengths=[5, 0, 2])
    >>> y.shape, h_n.shape
    ((5, 3, 32), (2, 3, 16))
    """

    _family = "lstm"


class GRU(Recurrent[np.ndarray]):
    """Stacked gated recurrent units, in one direction or both.

    The equations, parameter names and shapes are those of ``torch.nn.GRU`` (Cho et al. 2014,
    with the reset gate applied after the product; gate order r, z, n).

    Arguments, defaults and errors are those of `LSTM`, but for the variants; ``activations`` are
    those of the gates and of the candidate n. The variant "reset_before" applies the reset gate
    before the product (Cho et al. 2014; Keras's ``reset_after=False``, ONNX's
    ``linear_before_reset=0``). The state is h alone, an array instead of a pair.
    Input weights are Glorot uniform and recurrent weights orthogonal per gate, biases
    are 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> gru = fastrnn.GRU(8, 16, seed=0)
    >>> y, h_n = gru(np.ones((5, 3, 8)))
    >>> y.shape, h_n.shape
    ((5, 3, 16), (1, 3, 16))
    """

    _family = "gru"


class RNN(Recurrent[np.ndarray]):
    """Stacked Elman networks, in one direction or both.

    The equations, parameter names and shapes are those of ``torch.nn.RNN`` (Elman 1990).

    Arguments, defaults and errors are those of `LSTM`, plus the one below; the state is h
    alone, an array instead of a pair. Input weights are Glorot uniform, recurrent weights
    orthogonal, biases 0.

    Parameters
    ----------
    nonlinearity : {"tanh", "relu"}, default "tanh"

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> rnn = fastrnn.RNN(8, 16, nonlinearity="relu", seed=0)
    >>> y, h_n = rnn(np.ones((5, 3, 8)))
    >>> y.shape, h_n.shape
    ((5, 3, 16), (1, 3, 16))
    """

    _family = "rnn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        **options: Any,
    ):
        self.nonlinearity = checks.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, num_layers, variant=nonlinearity, **options)
        self.variant = None  # its repr and arguments have the nonlinearity instead

    def _shown(self) -> dict:
        return {"nonlinearity": self.nonlinearity}
