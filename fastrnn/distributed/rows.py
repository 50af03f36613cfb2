"""Sums of gradients of some rows of a table, each row in the process that it belongs to."""

from typing import NamedTuple

import numpy as np

from .group import Group, Node, tree_sum

BLOCK = 64  # rows of which the squares are added up, and which belong to one process


class Rows(NamedTuple):
    """Some rows of a table: rows int64 [R] in increasing order, values [R, E]."""

    rows: np.ndarray
    values: np.ndarray

    def between(self, first: int, last: int) -> "Rows":
        """Those from row first to row last - 1."""
        part = slice(*np.searchsorted(self.rows, (first, last)))
        return Rows(self.rows[part], self.values[part])


def add(left: Rows, right: Rows) -> Rows:
    """The sum; a row that only one has is as it is."""
    rows = np.union1d(left.rows, right.rows)
    values = np.zeros((len(rows), left.values.shape[1]), left.values.dtype)
    values[np.searchsorted(rows, left.rows)] = left.values
    values[np.searchsorted(rows, right.rows)] += right.values
    return Rows(rows, values)


class RowSum:
    """Adds up gradients of rows of a table; this process gets those that belong to it.

    Parameters
    ----------
    group : Group
    table : array [V, E]

    Attributes
    ----------
    first, last : int
        The rows from first to last - 1 belong to this process.
    blocks : int
        Number of blocks of rows, of which `squares` are.
    """

    def __init__(self, group: Group, table: np.ndarray):
        self.group, self.sent = group, 0
        self.blocks = -(-len(table) // BLOCK)
        owned = [group.divided(self.blocks, p).start * BLOCK for p in range(group.size)]
        self._bounds = [*owned, len(table)]
        self.first, self.last = self._bounds[group.rank : group.rank + 2]
        self._none = Rows(np.empty(0, np.int64), np.empty((0, table.shape[1]), table.dtype))

    def mine(self, shards: dict[int, Rows]) -> Rows:
        """The rows of the sum that belong to this process, from the shards of each process."""
        own = {(s, s + 1): rows for s, rows in shards.items()}
        sums = [tree_sum(node, own, add) for node in self.group.nodes[self.group.rank]]
        arrived: dict[Node, Rows] = {}
        for number in range(max(map(len, self.group.nodes))):
            some = sums[number] if number < len(sums) else self._none
            bounds = zip(self._bounds, self._bounds[1:], strict=False)
            received = self._exchanged([some.between(a, b) for a, b in bounds])
            for nodes, rows in zip(self.group.nodes, received, strict=True):
                if number < len(nodes):
                    arrived[nodes[number]] = rows
        return tree_sum((0, self.group.shards), arrived, add)

    def squares(self, mine: Rows) -> np.ndarray:
        """The sum of squares of each block of rows, 0 for those of other processes."""
        values = mine.values
        of_rows = np.einsum("re,re->r", values, values, dtype=np.float64)
        return np.bincount(mine.rows // BLOCK, of_rows, self.blocks)

    def everywhere(self, table: np.ndarray, rows: np.ndarray) -> None:
        """Send the rows of a table that this process changed to all others, which write them."""
        if self.group.size == 1:
            return
        some = Rows(rows, table[rows])
        for other in self._exchanged([some] * self.group.size):
            table[other.rows] = other.values

    def _exchanged(self, parts: list[Rows]) -> list[Rows]:
        """Send part p to process p; what arrived from each process."""
        if self.group.size == 1:
            return parts
        comm, width = self.group.comm, self._none.values.shape[1]
        counts = np.array([len(part.rows) for part in parts])
        arriving = np.empty_like(counts)
        comm.Alltoall(counts, arriving)
        rows = np.empty(arriving.sum(), np.int64)
        values = np.empty((len(rows), width), self._none.values.dtype)
        comm.Alltoallv((np.concatenate([part.rows for part in parts]), counts), (rows, arriving))
        comm.Alltoallv(
            (np.concatenate([part.values for part in parts]), counts * width),
            (values, arriving * width),
        )
        row = rows.itemsize + width * values.itemsize
        self.sent += int(counts.sum() - counts[self.group.rank]) * row
        ends = np.cumsum(arriving)[:-1]
        return [
            Rows(r, v) for r, v in zip(np.split(rows, ends), np.split(values, ends), strict=True)
        ]
