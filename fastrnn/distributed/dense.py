"""Sums of the shards' flat gradients, a part in each process, and the weights that come back.

The vector is divided into blocks, and block b belongs to process b % P, so that any part of the
vector belongs to all processes in equal shares. Each process sends each other its share
(all-to-all), adds what it receives, and sends its share of the new weights to all (all-gather). A
ring all-reduce (Patarasuk & Yuan 2009) sends as many bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .group import Group, Node, middle, tree_sum

BLOCK = 1024
BUCKETS = 8  # parts of the vector that are sent while the others are computed, at most
LEAST = 1 << 18  # numbers of a bucket, at least


class DenseSum:
    """Adds up the flat gradients of all shards; this process gets its blocks of the sum.

    Parameters
    ----------
    group : Group
    size : int
        Of the flat vector.
    dtype : numpy.dtype

    Attributes
    ----------
    sent : int
        Bytes of gradients that this process has sent to others.
    """

    def __init__(self, group: Group, size: int, dtype: np.dtype):
        self.group, self.size = group, size
        processes, self.sent = group.size, 0
        self._row = processes * BLOCK  # numbers of a row of blocks, one of each process
        self.rows = -(-size // self._row)
        height = max(-(-self.rows // BUCKETS), -(-LEAST // self._row))
        starts = range(0, self.rows, height)
        # From the end, as backpropagation ends with the first layer.
        self._buckets = [(a, min(a + height, self.rows)) for a in reversed(starts)]
        rounds = max(map(len, group.nodes))
        self._out = [
            [np.zeros((processes, b - a, BLOCK), dtype) for a, b in self._buckets]
            for _ in range(rounds)
        ]
        self._in = self._out
        if processes > 1:
            self._in = [list(map(np.zeros_like, of_round)) for of_round in self._out]
        self._whole = np.zeros((processes, self.rows, BLOCK), dtype)
        self._mine = np.empty((self.rows, BLOCK), dtype)
        self._scratch = np.empty(min(height * self._row, size), dtype)
        self._lefts: list[np.ndarray] = []  # kept, as new memory costs more than the sums
        self._requests: list[Any] = []

    def node(
        self,
        number: int,
        shard: Callable[[int, Callable[[np.ndarray, int, int], None]], None],
    ) -> None:
        """Compute the shards of a node of this process and send its sum.

        ``shard(s, done)`` must compute shard s; it calls ``done(gradient, factor, first)`` when the
        gradient is complete from position ``first`` to the end, with decreasing positions down to
        0. Gradients are multiplied by the factor.
        """
        nodes = self.group.nodes[self.group.rank]
        if number >= len(nodes):  # another process has more
            for bucket in range(len(self._buckets)):
                self._send(number, bucket)
            return
        # The sums to the left of the last shard, so that its parts complete those of the node.
        before, node = list[np.ndarray](), nodes[number]
        while node[1] - node[0] > 1:
            before.append(self._computed((node[0], middle(node)), shard, len(before)))
            node = middle(node), node[1]
        waiting = list(range(len(self._buckets)))

        def done(gradient: np.ndarray, factor: int, first: int) -> None:
            while waiting and self._buckets[waiting[0]][0] * self._row >= first:
                bucket = waiting.pop(0)
                self._fill(number, bucket, gradient, factor, before)
                self._send(number, bucket)

        shard(node[0], done)

    def _computed(self, node: Node, shard, used: int) -> np.ndarray:
        """The sum of a node all of whose shards are computed here, while the first ``used`` buffers
        hold other sums."""
        if node[1] - node[0] == 1:
            if used == len(self._lefts):
                self._lefts.append(np.empty(self.size, self._whole.dtype))
            out = self._lefts[used]

            def done(gradient, factor, first):
                if first == 0:
                    np.multiply(gradient, factor, out=out, dtype=out.dtype)

            shard(node[0], done)
            return out
        left = self._computed((node[0], middle(node)), shard, used)
        left += self._computed((middle(node), node[1]), shard, used + 1)
        return left

    def _fill(self, number: int, bucket: int, gradient, factor: int, before: list) -> None:
        first, last = (row * self._row for row in self._buckets[bucket])
        part = slice(first, min(last, self.size))
        values = self._scratch[: part.stop - part.start]
        np.multiply(gradient[part], factor, out=values, dtype=values.dtype)
        for left in reversed(before):
            np.add(left[part], values, out=values)
        _divide(values, self._out[number][bucket])

    def _send(self, number: int, bucket: int) -> None:
        if self.group.size == 1:
            return
        out, arrived = self._out[number][bucket], self._in[number][bucket]
        self._requests.append(self.group.comm.Ialltoall(out, arrived))
        self.sent += out.nbytes - out[0].nbytes
        for request in self._requests:  # lets the library go on with those before
            request.Test()

    def mine(self) -> np.ndarray:
        """The blocks of the sum that belong to this process, [rows, BLOCK], in a buffer that the
        next call overwrites."""
        for request in self._requests:
            request.Wait()
        self._requests.clear()
        out = self._mine
        for bucket, (first, last) in enumerate(self._buckets):
            parts = {
                node: self._in[number][bucket][process]
                for process, nodes in enumerate(self.group.nodes)
                for number, node in enumerate(nodes)
            }
            out[first:last] = tree_sum((0, self.group.shards), parts, _add)
        return out

    def own(self, flat: np.ndarray) -> np.ndarray:
        """A copy of the blocks of a vector that belong to this process, [rows, BLOCK]."""
        rank, full = self.group.rank, self.size // self._row
        out = np.zeros((self.rows, BLOCK), flat.dtype)
        out[:full] = flat[: full * self._row].reshape(full, self.group.size, BLOCK)[:, rank]
        rest = flat[full * self._row + rank * BLOCK :][:BLOCK]
        out[full:, : len(rest)] = rest
        return out

    def whole(self, own: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Write the vector whose blocks the processes have into ``flat``."""
        self._whole[self.group.rank] = own
        if self.group.size > 1:
            from mpi4py import MPI

            self.group.comm.Allgather(MPI.IN_PLACE, self._whole)
        rows = self._whole.swapaxes(0, 1)
        full = self.size // self._row
        flat[: full * self._row].reshape(full, self.group.size, BLOCK)[:] = rows[:full]
        if full < self.rows:
            flat[full * self._row :] = rows[full].reshape(-1)[: self.size - full * self._row]
        return flat


def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.add(left, right, out=left)


def _divide(values: np.ndarray, out: np.ndarray) -> None:
    """Write a vector's blocks to the processes' rows of out, [P, rows, BLOCK]; the rest stays 0."""
    row = out.shape[0] * BLOCK
    full = len(values) // row
    out[:, :full] = values[: full * row].reshape(full, out.shape[0], BLOCK).swapaxes(0, 1)
    rest = values[full * row :]
    for process in range(-(-len(rest) // BLOCK)):
        block = rest[process * BLOCK : (process + 1) * BLOCK]
        out[process, full, : len(block)] = block
