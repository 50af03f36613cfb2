"""The recurrent cells: a record each (see `spec.Cell`) and the table of all of them."""

from .elman import RNN_RELU, RNN_TANH
from .gru import GRU
from .gru_reset_before import GRU_RESET_BEFORE
from .lstm import LSTM
from .lstm_clipped import LSTM_CLIPPED
from .lstm_coupled import LSTM_COUPLED
from .lstm_layer_norm import LSTM_LAYER_NORM
from .lstm_peephole import LSTM_PEEPHOLE
from .lstm_projected import LSTM_PROJECTED
from .spec import Cell, check

CELLS = {
    "lstm": check(LSTM),
    "lstm_peephole": check(LSTM_PEEPHOLE),
    "lstm_coupled": check(LSTM_COUPLED),
    "lstm_clipped": check(LSTM_CLIPPED),
    "lstm_projected": check(LSTM_PROJECTED),
    "lstm_layer_norm": check(LSTM_LAYER_NORM),
    "gru": check(GRU),
    "gru_reset_before": check(GRU_RESET_BEFORE),
    "rnn_tanh": check(RNN_TANH),
    "rnn_relu": check(RNN_RELU),
}

__all__ = ["CELLS", "Cell"]
