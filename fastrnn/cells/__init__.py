"""The cells' equations, and how their gates lie side by side."""

from typing import NamedTuple


class Layout(NamedTuple):
    """How many gates and states a cell has, and where its sums come from.

    A unit has ``slots`` sums side by side. ``of_x`` are the gates, by their place in PyTorch's
    order, that W_ih adds to the first of them, and ``of_h`` those that W_hh adds to the last.
    """

    gates: int
    states: int
    of_x: tuple[int, ...]
    of_h: tuple[int, ...]
    slots: int

    @property
    def h_first(self) -> int:
        """The first slot that W_hh adds to."""
        return self.slots - len(self.of_h)


# GRU: the slots are n of x, r, z, n of h, so what belongs to x and to h is three side by side.
LAYOUTS = {
    "lstm": Layout(4, 2, (0, 1, 2, 3), (0, 1, 2, 3), 4),
    "gru": Layout(3, 1, (2, 0, 1), (0, 1, 2), 4),
    "rnn_tanh": Layout(1, 1, (0,), (0,), 1),
    "rnn_relu": Layout(1, 1, (0,), (0,), 1),
}
