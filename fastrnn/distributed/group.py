"""The processes that train together, and the shards of a batch that each has."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from fastrnn import checks
from fastrnn.runtime.threads import cpus, set_num_threads

T = TypeVar("T")
U = TypeVar("U")

Node = tuple[int, int]  # the first shard of a subtree, and the one after its last


def middle(node: Node) -> int:
    """Where the right half of a node of the tree begins."""
    return (node[0] + node[1] + 1) // 2


def cover(node: Node, first: int, last: int) -> list[Node]:
    """The largest nodes below ``node`` that together have the shards from first to last - 1."""
    if first <= node[0] and node[1] <= last:
        return [node]
    if last <= node[0] or node[1] <= first:
        return []
    left, right = (node[0], middle(node)), (middle(node), node[1])
    return cover(left, first, last) + cover(right, first, last)


def tree_sum(node: Node, parts: dict[Node, T], add: Callable[[T, T], T]) -> T:
    """The sum of a node, in the order of the tree, from the sums of nodes below it."""
    if node in parts:
        return parts[node]
    left, right = (node[0], middle(node)), (middle(node), node[1])
    return add(tree_sum(left, parts, add), tree_sum(right, parts, add))


class Group:
    """The processes of an MPI job that train one model; or this process alone.

    Parameters
    ----------
    shards : int, optional
        S, into which each batch is split; at least the number of processes, which is the default.
        The trained model depends on S, but not on the number of processes.
    comm : mpi4py.MPI.Comm, optional
        The communicator of the processes, such as ``MPI.COMM_WORLD``.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    lead : bool
        Whether this process writes the files and the messages: that of rank 0.
    nodes : list of list of (int, int)
        For each process, the subtrees of shards that it adds up itself.

    Examples
    --------
    >>> from fastrnn.distributed import Group
    >>> group = Group(shards=4)
    >>> group.nodes[group.rank]
    [(0, 4)]
    """

    def __init__(self, shards: int | None = None, comm: Any = None):
        if comm is not None:
            checks.has("comm", comm, "Get_rank", "Get_size", "bcast", "Allreduce", "Ialltoall")
        self.comm = comm
        self.rank = 0 if comm is None else comm.Get_rank()
        self.size = 1 if comm is None else comm.Get_size()
        self.shards = self.size if shards is None else checks.integer("shards", shards)
        if self.shards < self.size:
            raise ValueError(
                f"shards must be at least the number of processes, {self.size}; got {shards}"
            )
        parts = [self.divided(self.shards, rank) for rank in range(self.size)]
        self.nodes = [cover((0, self.shards), mine.start, mine.stop) for mine in parts]

    @classmethod
    def given(cls, group: "Group | None") -> "Group":
        """The argument ``group`` of a function, by default this process alone."""
        if not isinstance(group, Group | None):
            raise TypeError(f"group must be a Group, got {type(group).__name__}")
        return group or cls()

    @property
    def lead(self) -> bool:
        return self.rank == 0

    def divided(self, n: int, rank: int | None = None) -> range:
        """Which of n things belong to a process, by default this one."""
        rank = self.rank if rank is None else rank
        return range(rank * n // self.size, (rank + 1) * n // self.size)

    def share(self, compute: Callable[[], T]) -> T:
        """What ``compute()`` returns in the lead, in every process; what it raises, too."""
        if self.size == 1:
            return compute()
        result: Any = None
        error: Exception | None = None
        if self.lead:
            try:
                result = compute()
            except Exception as raised:
                error = raised
        result, error = self.comm.bcast((result, error))
        if error is not None:
            raise error
        return result

    def check_same(self, what: str, facts: Any) -> None:
        """Raise a ValueError in all processes if facts that must agree differ."""
        everyone = [facts] if self.size == 1 else self.comm.allgather(facts)
        for rank, others in enumerate(everyone):
            if others != everyone[0]:
                raise ValueError(
                    f"{what} must be the same in all processes: process 0 has {everyone[0]}, "
                    f"process {rank} {others}"
                )

    def map(self, function: Callable[[list[T]], Iterable[U]], items: Sequence[T]) -> list[U]:
        """``list(function(items))``, computed by all processes, for a function that maps each item
        on its own; the result is in every process."""
        if self.size == 1:
            return list(function(list(items)))
        parts = self.comm.allgather(list(function(list(items[self.rank :: self.size]))))
        out: list[Any] = [None] * len(items)
        for rank, part in enumerate(parts):
            out[rank :: self.size] = part
        return out

    def stream(self, read: Callable[[], T], work: Callable[[T], U]) -> Iterator[U]:
        """``work(item)`` for the items that ``read()`` returns one after the other, up to one that
        is false. The lead reads and gets the results, in order; all processes work."""
        while True:
            items = [read() for _ in range(self.size)] if self.lead else []
            item, more = (items[0], bool(items[0])) if self.lead else (None, False)
            if self.size > 1:
                item, more = self.comm.scatter([(item, bool(items[0])) for item in items])
            if not more:
                return
            result = work(item) if item else None
            results = self.comm.gather(result) if self.size > 1 else [result]
            for item, result in zip(items, results or [], strict=True):
                if item:
                    yield result

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of the processes' float64 vectors; exact where only one is not zero."""
        if self.size > 1:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, values)
        return values


def share_cpus(comm: Any) -> None:
    """Divide the CPUs of a machine among the processes there that may run on the same ones; not if
    the environment says how many threads each has."""
    if comm is None or os.environ.get("FASTRNN_NUM_THREADS"):
        return
    from mpi4py import MPI

    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    everyone = here.allgather(cpus())
    set_num_threads(max(1, len(cpus()) // everyone.count(cpus())))
