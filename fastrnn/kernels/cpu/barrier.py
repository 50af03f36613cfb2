"""`meet`: where threads that share the units of one time loop wait for each other.

Only there may a thread wait without sleeping: a step takes microseconds, waking a thread
tens of them. A thread that waits long gives its core away at every look, so a busy neighbour
slows the loop down but cannot stop it.
"""

import os

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_I64 = ir.IntType(64)
_LINE = 8  # int64 in a cache line: each meeting place has one of its own
_LOOKS = 2000  # about 50 us; then the core is given away in between
_X86 = "x86_64" in llvm.get_process_triple()
# Without a way to give the core away, threads do not share a time loop.
CAN_MEET = os.name == "posix"


class Barrier:
    """Meeting places for some groups of threads, good for one region."""

    def __init__(self, groups: int):
        self.counts = np.zeros((groups + 1) * _LINE, np.int64)

    def place(self, group: int) -> tuple[np.ndarray, int]:
        """What `meet` wants to know of it."""
        return self.counts, (group + 1) * _LINE

    def abandon(self) -> None:
        """Let everybody go on: somebody will not come."""
        self.counts[0] = 1


@intrinsic
def _add(typingctx, array, i):
    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        builder.atomic_rmw("add", builder.gep(data, [args[1]]), ir.Constant(_I64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _look(typingctx, array, i):
    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.int64), codegen


def _call(name):
    @intrinsic
    def call(typingctx):
        def codegen(context, builder, sig, args):
            void = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, void, name), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return call


def _nothing():
    pass


_pause = _call("llvm.x86.sse2.pause") if _X86 else register_jitable(_nothing)
_give_way = _call("sched_yield") if CAN_MEET else register_jitable(_nothing)


@register_jitable
def meet(counts, at, parties, round_):
    """Wait until ``parties`` threads have come here ``round_`` times; at once if it is one."""
    if parties == 1:
        return
    _add(counts, at)
    looks = 0
    while _look(counts, at) < parties * round_ and _look(counts, 0) == 0:
        looks += 1
        _pause()
        if looks > _LOOKS:
            _give_way()
