"""`barrier_wait`: a barrier for threads that share the units of one time loop.

Only here does a thread wait without sleeping: a step takes microseconds, waking a thread tens of
microseconds. After about 50 us a waiting thread yields its core each time it polls, so a busy
neighbour slows the loop down but cannot stop it.
"""

import os

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_I64 = ir.IntType(64)
_LINE = 8  # int64 in a cache line: each counter has a line of its own
_POLLS = 2000  # about 50 us; then the thread yields between polls
_X86 = "x86_64" in llvm.get_process_triple()
# Threads share a time loop only where a waiting thread can yield its core.
CAN_SHARE_UNITS = os.name == "posix"


class Barrier:
    """The counters of some groups of threads, for one parallel region."""

    def __init__(self, groups: int):
        self.counts = np.zeros((groups + 1) * _LINE, np.int64)

    def counter(self, group: int) -> tuple[np.ndarray, int]:
        """The array and the index of a group's counter, for `barrier_wait`."""
        return self.counts, (group + 1) * _LINE

    def abandon(self) -> None:
        """Release all threads: one of them will never arrive."""
        self.counts[0] = 1


@intrinsic
def _add(typingctx, array, i):
    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        builder.atomic_rmw("add", builder.gep(data, [args[1]]), ir.Constant(_I64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _poll(typingctx, array, i):
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
_yield = _call("sched_yield") if CAN_SHARE_UNITS else register_jitable(_nothing)


@register_jitable
def barrier_wait(counts, slot, parties, round_):
    """Wait until ``parties`` threads have arrived ``round_`` times; returns at once for one."""
    if parties == 1:
        return
    _add(counts, slot)
    polls = 0
    while _poll(counts, slot) < parties * round_ and _poll(counts, 0) == 0:
        polls += 1
        _pause()
        if polls > _POLLS:
            _yield()
