"""Instructions that Numba has no function for, by inline PTX; the only place that has any.

Fragments of ``mma`` are laid out as in the PTX manual (9.7.14): lane = 4 g + q.
"""

from llvmlite import ir
from numba import types
from numba.core import config

if config.ENABLE_CUDASIM:
    from .simulated import (
        across,
        arrive,
        as_bits,
        as_float,
        await_all,
        await_copies,
        bf16_pair,
        cluster_rank,
        cluster_sync,
        copy_later,
        expect,
        grid_sync,
        initialise,
        load_if,
        mma_bf16,
        mma_tf32,
        store_remote,
        tanh_approx,
        tf32,
        wait_for,
    )
else:
    from numba.cuda.extending import intrinsic

    _KINDS = {
        types.uint32: (ir.IntType(32), "r"),
        types.float32: (ir.FloatType(), "f"),
        types.CPointer(types.uint32): (ir.PointerType(ir.IntType(32)), "l"),
        types.CPointer(types.float32): (ir.PointerType(ir.FloatType()), "l"),
    }
    _U, _F = types.uint32, types.float32

    def _operation(asm: str, returns: list, takes: list, *, pure: bool = True):
        """A function of ``takes`` that is one piece of PTX; ``$0`` and so on are what it returns
        and then what it takes. What is not ``pure`` stays where it stands, and memory with it."""
        one = len(returns) == 1
        returned = types.void if not returns else returns[0] if one else types.UniTuple(_F, 4)
        outputs = [_KINDS[r][0] for r in returns]
        shape = (
            ir.VoidType() if not returns else outputs[0] if one else ir.LiteralStructType(outputs)
        )
        constraints = ["=" + _KINDS[r][1] for r in returns] + [_KINDS[a][1] for a in takes]
        constraints += [] if pure else ["~{memory}"]

        def codegen(context, builder, sig, args):
            function = ir.FunctionType(shape, [_KINDS[a][0] for a in takes])
            inline = ir.InlineAsm(function, asm, ",".join(constraints), side_effect=not pure)
            # Lanes do these together: no part of them may be moved behind a condition.
            out = builder.call(inline, args, attrs=("convergent",))
            if not returns:
                return context.get_dummy_value()
            if one:
                return out
            values = [builder.extract_value(out, i) for i in range(len(returns))]
            return context.make_tuple(builder, sig.return_type, values)

        # An intrinsic's arguments are those of a function that says them by name.
        names = "".join(f", a{i}" for i in range(len(takes)))
        scope = {"signature": returned(*takes), "codegen": codegen}
        exec(f"def operation(typingctx{names}):\n    return signature, codegen", scope)
        return intrinsic(scope["operation"])

    _FRAGMENTS = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    _takes = [_U] * 6 + [_F] * 4
    mma_bf16 = _operation(
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {_FRAGMENTS}", [_F] * 4, _takes
    )
    mma_tf32 = _operation(
        f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {_FRAGMENTS}", [_F] * 4, _takes
    )
    # The second argument comes to lie in the upper half.
    bf16_pair = _operation("cvt.rn.bf16x2.f32 $0, $2, $1;", [_U], [_F, _F])
    tf32 = _operation("cvt.rna.tf32.f32 $0, $1;", [_U], [_F])
    as_bits = _operation("mov.b32 $0, $1;", [_U], [_F])
    as_float = _operation("mov.b32 $0, $1;", [_F], [_U])
    tanh_approx = _operation("tanh.approx.f32 $0, $1;", [_F], [_F])
    # What the lane has whose number differs in bit 2: g is one more or one less.
    across = _operation("shfl.sync.bfly.b32 $0, $1, 4, 31, 0xffffffff;", [_U], [_U], pure=False)
    cluster_rank = _operation("mov.u32 $0, %cluster_ctarank;", [_U], [])
    cluster_sync = _operation(
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        [], [], pure=False,
    )  # fmt: skip
    # Barriers in shared memory that count bytes (9.7.13.15): `initialise` and the rest are below.
    _initialise = _operation(
        "mbarrier.init.shared::cta.b64 [$0], 1; fence.mbarrier_init.release.cluster;",
        [], [_U], pure=False,
    )  # fmt: skip
    _expect = _operation(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", [], [_U, _U], pure=False
    )
    # Acquires for the block only: for the whole cluster it would empty the L1 cache as well, which
    # nothing that is sent goes through.
    _wait_for = _operation(
        "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; "
        "@!p bra again; }",
        [], [_U, _U], pure=False,
    )  # fmt: skip
    _in_block = _operation("mapa.shared::cluster.u32 $0, $1, $2;", [_U], [_U, _U])
    _store_async = _operation(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [$0], $1, [$2];",
        [], [_U, _U, _U], pure=False,
    )  # fmt: skip

    _add_release = _operation(
        "atom.add.release.gpu.u32 $0, [$1], $2;", [_U], [types.CPointer(_U), _U], pure=False
    )
    _load_acquire = _operation(
        "ld.acquire.gpu.u32 $0, [$1];", [_U], [types.CPointer(_U)], pure=False
    )

    # Past the L1 cache, which is not that of who wrote it.
    _copy_later = _operation(
        "{ .reg .u64 a; cvta.to.global.u64 a, $1; cp.async.cg.shared.global [$0], [a], 16; }",
        [], [_U, types.CPointer(_U)], pure=False,
    )  # fmt: skip
    await_copies = _operation("cp.async.wait_all;", [], [], pure=False)

    # 0 where the condition is 0; a compiler would make a branch of it.
    _load_if = _operation(
        "{ .reg .pred p; .reg .u64 a; setp.ne.u32 p, $2, 0; cvta.to.global.u64 a, $1; "
        "mov.f32 $0, 0f00000000; @p ld.global.f32 $0, [a]; }",
        [_F], [types.CPointer(_F), _U],
    )  # fmt: skip

    @intrinsic
    def _element(typingctx, array, i):
        """The address of ``array[i]``."""

        def codegen(context, builder, sig, args):
            return builder.gep(args[0], [args[1]])

        return array(array, types.int64), codegen

    @intrinsic
    def _address(typingctx, array, i):
        """Of ``array[i]`` in shared memory."""

        def codegen(context, builder, sig, args):
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            element = builder.gep(data, [args[1]])
            shared = builder.addrspacecast(element, ir.PointerType(element.type.pointee, 3))
            return builder.ptrtoint(shared, ir.IntType(32))

        return types.uint32(array, types.int64), codegen

    from numba import cuda

    @cuda.jit(device=True, inline="always")
    def arrive(barriers, i, count, is_first):
        """Come to a barrier of ``count`` blocks, all of which must be resident: what to give to
        `await_all`.

        ``barriers[i]`` is in global memory. Each block adds 1 to it, and one, the first, what is
        missing to 2**31: so the highest bit changes when all have come, the others are 0 again,
        and whoever comes next finds the barrier ready.
        """
        cuda.syncthreads()
        before = types.uint32(0)
        if cuda.threadIdx.x == 0:
            missing = types.uint32(0x80000001) - types.uint32(count)
            step = missing if is_first else types.uint32(1)
            before = _add_release(_element(barriers, i), step)
        return before

    @cuda.jit(device=True, inline="always")
    def await_all(barriers, i, before):
        """Wait until all blocks have come to the barrier."""
        if cuda.threadIdx.x == 0:
            at = _element(barriers, i)
            while not (before ^ _load_acquire(at)) & types.uint32(0x80000000):
                pass
        cuda.syncthreads()

    @cuda.jit(device=True, inline="always")
    def grid_sync(barrier):
        """Wait for all blocks of the grid, of which all must be resident."""
        count = cuda.gridDim.x * cuda.gridDim.y
        is_first = cuda.blockIdx.x == 0 and cuda.blockIdx.y == 0
        await_all(barrier, 0, arrive(barrier, 0, count, is_first))

    @cuda.jit(device=True, inline="always")
    def load_if(array, i, condition):
        """``array[i]``, or 0 where the condition is false, without a branch."""
        return _load_if(_element(array, i), types.uint32(condition))

    @cuda.jit(device=True, inline="always")
    def copy_later(array, i, source, j):
        """``array[i : i + 4] = source[j : j + 4]`` from global to shared memory, done behind
        `await_copies`; both i and j are multiples of 4."""
        _copy_later(_address(array, i), _element(source, j))

    # A barrier takes two words of a block's shared memory, the first of which has an even index. It
    # goes from one phase to the next when `expect` was called and as many bytes have come.

    @cuda.jit(device=True, inline="always")
    def initialise(array, barrier):
        """Make a barrier of ``array[barrier]``; by one thread, with a `cluster_sync` behind it."""
        _initialise(_address(array, barrier))

    @cuda.jit(device=True, inline="always")
    def expect(array, barrier, count):
        """Say how many bytes will come in this phase of my block's barrier; by one thread."""
        _expect(_address(array, barrier), types.uint32(count))

    @cuda.jit(device=True, inline="always")
    def wait_for(array, barrier, phase):
        """Wait for the end of a phase of my block's barrier, of which only the lowest bit counts:
        what has come is then visible."""
        _wait_for(_address(array, barrier), types.uint32(phase & 1))

    @cuda.jit(device=True, inline="always")
    def store_remote(array, i, rank, value, barrier):
        """``array[i] = value`` in the shared memory of a block of the cluster, whose barrier counts
        the 4 bytes when they have come."""
        first = _in_block(_address(array, 0), types.uint32(rank))
        _store_async(first + types.uint32(4 * i), value, first + types.uint32(4 * barrier))


__all__ = [
    "across",
    "arrive",
    "as_bits",
    "as_float",
    "await_all",
    "await_copies",
    "bf16_pair",
    "cluster_rank",
    "cluster_sync",
    "copy_later",
    "expect",
    "grid_sync",
    "initialise",
    "load_if",
    "mma_bf16",
    "mma_tf32",
    "store_remote",
    "tanh_approx",
    "tf32",
    "wait_for",
]
