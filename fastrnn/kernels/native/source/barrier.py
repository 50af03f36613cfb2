"""`barrier_wait`: a barrier for threads that share the units of one time loop.

Only here does a thread wait without sleeping: a step takes microseconds, waking a thread tens of
microseconds. After about 50 us a waiting thread yields its core each time it polls, so a busy
neighbour slows the loop down but cannot stop it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastrnn.kernels.native.isa import CAN_YIELD, X86

_I64 = ir.IntType(64)
_POLLS = 2000  # about 50 us; then the thread yields between polls


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


_pause = _call("llvm.x86.sse2.pause") if X86 else register_jitable(_nothing)
_yield = _call("sched_yield") if CAN_YIELD else register_jitable(_nothing)


@register_jitable
def barrier_wait(counts, slot, parties, round_):
    """Wait until ``parties`` threads have arrived ``round_`` times; returns at once for one."""
    if parties == 1:
        return
    _add(counts, slot)
    polls = 0
    while _poll(counts, slot) < parties * round_:
        polls += 1
        _pause()
        if polls > _POLLS:
            _yield()
