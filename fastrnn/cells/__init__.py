"""The recurrent cells: a record each (see `spec.Cell`) and the table of all of them."""

from .elman import RNN_RELU, RNN_TANH
from .gru import GRU
from .lstm import LSTM
from .lstm_clipped import LSTM_CLIPPED
from .lstm_coupled import LSTM_COUPLED
from .lstm_peephole import LSTM_PEEPHOLE
from .spec import Cell, check

CELLS = {
    "lstm": check(LSTM),
    "lstm_peephole": check(LSTM_PEEPHOLE),
    "lstm_coupled": check(LSTM_COUPLED),
    "lstm_clipped": check(LSTM_CLIPPED),
    "gru": check(GRU),
    "rnn_tanh": check(RNN_TANH),
    "rnn_relu": check(RNN_RELU),
}

__all__ = ["CELLS", "Cell"]
