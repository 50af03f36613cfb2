"""A stack of recurrent layers on packed rows: what `Recurrent` and `fastrnn.torch` share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastrnn.kernels.backend import Backend
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch
from fastrnn.runtime.threads import get_num_threads

State = tuple[Any, ...]  # arrays where the backend computes
MOST_PLANS = 64


class Tape(NamedTuple):
    """What `Stack.backward` needs of `Stack.forward`. It can be used once."""

    packed: PackedBatch
    stack: "Stack"
    layers: list  # the backend's tape of each layer
    keys: Sequence[int | None]  # of the dropout of each layer's input
    unbatched: bool


class Stack:
    """Layers with their packed parameters; made again when the parameters change.

    Arrays lie where the backend computes, a state is a tuple of arrays [L D, B, H] in the sorted
    order of the sequences, and nothing is checked.

    Parameters
    ----------
    kernels : Backend
    layers : list
        `Backend.RecurrentWeights` of each layer.
    directions : int
        D.
    dropout : float
        Of the input of each layer but the first, in training.
    dropped : dict of str to int, optional
        The keys of the dropout of weights, by the names of the parameters.
    made_from : tuple, optional
        What identifies the parameters.
    """

    def __init__(
        self,
        kernels: Backend,
        layers: list,
        directions: int,
        dropout: float,
        dropped: dict[str, int] | None = None,
        made_from: tuple = (),
    ):
        self.kernels, self.layers = kernels, layers
        self.directions, self.dropout = directions, dropout
        self.dropped, self.made_from = dropped or {}, made_from
        self._plans: dict[tuple, Any] = {}

    def planned(self, x: Any, state, unbatched: bool, size_of: Callable):
        """``(y, state)`` of a dense x by the plan of its shape, or None if there is none or x does
        not fit, see `Backend.recurrent_plan`.

        A plan is made when a shape comes for the second time. ``size_of(shape, unbatched)`` is
        (T, B), or None if there can be no plan.
        """
        # Other threads may add to or clear the plans at any time.
        plans, key = self._plans, (x.shape, unbatched, get_num_threads())
        plan = plans.get(key, "new")
        if plan == "new":
            if len(plans) >= MOST_PLANS:
                plans.clear()
            plans[key] = "seen"
        elif plan == "seen":
            size = size_of(x.shape, unbatched)
            plans[key] = size and self.kernels.recurrent_plan(self.layers, *size)
        elif plan is not None:
            return plan(x, state, unbatched)
        return None

    def forward(
        self,
        x,
        packed: PackedBatch,
        state: State,
        *,
        training: bool = False,
        keys: Sequence[int | None] = (),
        masks: Sequence[StepMasks | None] = (),
    ):
        """``(y [N, D H], state, tape or None)``.

        x is [N, I], or int64 [N] for a one-hot input given by its index; dropout changes a layer's
        input in place. ``keys`` and ``masks`` have an entry for each layer, or none.
        """
        kernels = self.kernels
        tapes, state_n = [], []
        for layer, weights in enumerate(self.layers):
            key = keys[layer] if keys else None
            if key is not None:
                kernels.dropout(x, self.dropout, key)
            x, after, tape = kernels.recurrent_forward(
                weights,
                x,
                packed,
                self._of_layer(state, layer),
                training=training,
                masks=masks[layer] if masks else None,
            )
            tapes.append(tape)
            state_n.append(after)
        tape = Tape(packed, self, tapes, keys, False) if training else None
        return x, self._stacked(state_n), tape

    def backward(self, tape: Tape, dy, dstate: State, add: Callable, *, need_dx: bool = True):
        """``(dx [N, I] or None, dstate of the start)`` of `forward`.

        ``add(layer, gradients)`` is called for each layer, the last one first; its gradients are,
        for each direction, a dict by the names of the parameters.
        """
        kernels = self.kernels
        dstate_0: list[State] = []
        for layer in reversed(range(len(self.layers))):
            dy, before, own = kernels.recurrent_backward(
                self.layers[layer],
                tape.layers[layer],
                dy,
                self._of_layer(dstate, layer),
                need_dx=need_dx or layer > 0,
            )
            key = tape.keys[layer] if tape.keys else None
            if key is not None:
                kernels.dropout(dy, self.dropout, key)
            add(layer, own)
            dstate_0.insert(0, before)
        return dy, self._stacked(dstate_0)

    def _stacked(self, states) -> State:
        """The states of all layers, concatenated."""
        if len(states) == 1:
            return states[0]
        return tuple(self.kernels.concatenate(parts) for parts in zip(*states, strict=True))

    def _of_layer(self, state: State, layer: int) -> State:
        return tuple(s[layer * self.directions : (layer + 1) * self.directions] for s in state)
