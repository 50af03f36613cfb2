"""Data-parallel training: the same bits for any number of processes.

A batch is split into shards. Each process computes the gradients of its shards, and the gradients
of all shards are added in one fixed binary tree:

    group.py     the processes, and which shards each has
    dense.py     sums of flat gradients, and the weights that come back
    rows.py      the same for tables of which a batch has some rows
    sharded.py   a training step of all processes
"""

from .group import Group

__all__ = ["Group"]
