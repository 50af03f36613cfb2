"""`Rows` of arrays that lie on the device."""

from functools import cached_property

import numpy as np

from fastrnn.kernels.rows import Rows

from . import moves
from .memory import to_device


class DeviceRows(Rows):
    """The same geometry; what it moves are arrays on the device."""

    @cached_property
    def _places_there(self) -> dict:
        return {first: to_device(places) for first, places in self._places.items()}

    def pack(self, x, *, batch_first: bool = False):
        x = to_device(x)
        tail = x.shape[2:]
        if self.order is None and not batch_first:
            return x.reshape(self.count, *tail)
        rows = moves.take(x, self._places_there[batch_first], int(np.prod(tail)))
        return rows.reshape(self.count, *tail)

    def unpack(self, rows, *, batch_first: bool = False):
        tail = rows.shape[1:]
        shape = (self.batch, self.steps) if batch_first else (self.steps, self.batch)
        if self.order is None and not batch_first:
            return rows.reshape(*shape, *tail)
        places, width = self._places_there[batch_first], int(np.prod(tail))
        out = moves.put(rows, places, self.batch * self.steps, width)
        return out.reshape(*shape, *tail)

    def _sequences(self, state):
        """Where the rows of a state [K, B, H] come from when it is sorted."""
        return to_device((np.arange(state.shape[0])[:, None] * self.batch + self.order).reshape(-1))

    def sort(self, state):
        state = to_device(state)
        if self.order is None:
            return state
        return moves.take(state, self._sequences(state), state.shape[-1]).reshape(*state.shape)

    def unsort(self, state):
        if self.order is None:
            return state
        rows = state.shape[0] * self.batch
        out = moves.put(state, self._sequences(state), rows, state.shape[-1])
        return out.reshape(*state.shape)
