"""What the blocks that share a tile of the batch send each other in every step: h or, backward, the
gradients of the gates, as operands of an mma.

The blocks of a cluster send it into each other's shared memory, into one of two buffers, whose
barrier counts the bytes. No other barrier is needed: a buffer is written again only by threads that
have what all others sent after they had read it. Blocks without a cluster write it to one of two
buffers in global memory, wait for each other, and copy it to their shared memory.

What is sent is numbered by the steps, from 1.
"""

from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, uint32

from fastrnn.kernels.signature import W1, I

from .launch import inlined
from .placement import PRECISIONS, ROWS, Plan, word_of
from .ptx import (
    across,
    arrive,
    as_bits,
    as_float,
    await_all,
    await_copies,
    cluster_rank,
    cluster_sync,
    copy_later,
    expect,
    initialise,
    store_remote,
    wait_for,
)  # fmt: skip

# Blocks wait at numbers that lie this far apart: in cache lines of their own.
APART = 32


class Groups(NamedTuple):
    """The blocks of a launch, by clusters or, where there are none, by groups."""

    values: W1  # [groups, 2, buffer], what they exchange; not used by clusters
    barriers: W1  # [groups, APART]; the same
    # The first tile of the batch and the first direction, where not all can be resident at once.
    first: I
    direction: I


class Exchange(NamedTuple):
    """Functions for kernels. A ``token`` stands for what was sent last.

    ``rank() -> int``: the number of my block among those that share a tile;
    ``begin(shared)`` and, when shared memory is as the first step needs it, ``synchronise()``: by
    all threads, once;
    ``place(number) -> int``: where in shared memory is what was received with this number;
    ``send(shared, groups, number, column, q, g, v0, v1)``: the numbers of the unit ``column`` in
    rows 2q and 2q + 1, by all threads;
    ``sent(groups) -> token``: all of it was sent by me;
    ``receive(shared, groups, number, token)``: wait until it has come from all.
    """

    rank: Callable
    begin: Callable
    synchronise: Callable
    place: Callable
    send: Callable
    sent: Callable
    receive: Callable


def exchange_of(layout: Plan, gates: int) -> Exchange:
    """For ``gates`` numbers of each unit."""
    functions = (_of_cluster if layout.is_cluster else _of_group)(layout, gates)
    put = functions.pop("put")
    send = _send_of(layout, gates, inlined(put))
    return Exchange(**{name: inlined(f) for name, f in functions.items()}, send=send)


def _of_cluster(layout: Plan, gates: int) -> dict[str, Callable]:
    blocks, buffer = layout.blocks, layout.buffer(gates)
    barriers, count = layout.barriers(gates), layout.sent(gates)

    def rank():
        return cluster_rank()

    def begin(shared):
        if cuda.threadIdx.x == 0:
            for i in range(2):
                initialise(shared, barriers + 2 * i)
                expect(shared, barriers + 2 * i, count)

    def synchronise():
        cluster_sync()

    def place(number):
        return (number & 1) * buffer

    def put(shared, groups, number, i, word):
        to = number & 1
        for rank in range(blocks):
            store_remote(shared, to * buffer + i, rank, word, barriers + 2 * to)

    def sent(groups):
        return uint32(0)

    def receive(shared, groups, number, token):
        barrier = barriers + 2 * (number & 1)
        wait_for(shared, barrier, (number - 1) >> 1)
        if cuda.threadIdx.x == 0:
            expect(shared, barrier, count)  # for the next but one

    return {
        "rank": rank, "begin": begin, "synchronise": synchronise, "place": place,
        "put": put, "sent": sent, "receive": receive,
    }  # fmt: skip


def _of_group(layout: Plan, gates: int) -> dict[str, Callable]:
    blocks, buffer, threads = layout.blocks, layout.buffer(gates), layout.threads

    def rank():
        return cuda.blockIdx.x % blocks

    def begin(shared):
        pass

    def group():
        return (cuda.gridDim.x * cuda.blockIdx.y + cuda.blockIdx.x) // blocks

    def barrier():
        return group() * APART

    def sent(groups):
        return arrive(groups.barriers, barrier(), blocks, cuda.blockIdx.x % blocks == 0)

    def synchronise():
        cuda.syncthreads()  # nothing has been sent so far

    def place(number):
        return 0

    def buffer_of(number):
        return (group() * 2 + (number & 1)) * buffer

    def put(shared, groups, number, i, word):
        groups.values[buffer_of(number) + i] = word

    def receive(shared, groups, number, token):
        await_all(groups.barriers, barrier(), token)
        first = buffer_of(number)
        for i in range(4 * cuda.threadIdx.x, buffer, 4 * threads):
            copy_later(shared, i, groups.values, first + i)
        await_copies()
        cuda.syncthreads()

    group, barrier, buffer_of = map(inlined, (group, barrier, buffer_of))
    return {
        "rank": rank, "begin": begin, "synchronise": synchronise, "place": place, "put": put,
        "sent": sent, "receive": receive,
    }  # fmt: skip


def _send_of(layout: Plan, gates: int, put: Callable) -> Callable:
    """See `Exchange`."""
    shape, row = PRECISIONS[layout.precision], layout.row(gates)
    word0, word1 = (word_of(layout.precision, part) for part in (0, shape.parts - 1))
    pairs, parts = shape.pair == 2, shape.parts

    def send(shared, groups, number, column, q, g, v0, v1):
        if not pairs:
            put(shared, groups, number, 2 * q * row + column, word0(v0, v0))
            put(shared, groups, number, (2 * q + 1) * row + column, word0(v1, v1))
            return
        # A word takes two neighbouring units of one row: each lane makes that of one row.
        theirs = as_float(across(as_bits(v0 if g & 1 else v1)))
        low = theirs if g & 1 else v0
        high = v1 if g & 1 else theirs
        to = (2 * q + (g & 1)) * row + (column >> 1)
        put(shared, groups, number, to, word0(low, high))
        if parts == 2:
            put(shared, groups, number, to + ROWS * row, word1(low, high))

    return inlined(send)
