"""`kernel`, the one way in which this package compiles a function, and machine code out of it.

The code of a kernel is an object file with one function, its entry:

    void entry(int64 *slots, int64 first, int64 last, void *scratch)

Slots hold the arguments, see src_native/native.c; first, last and scratch (the address of
`SCRATCH` bytes that are the thread's own) come from the call, so a kernel that wants them has
arguments of these names at its end. Nothing of Numba or Python is left in
it, so it can be linked into an extension when the package is built, or loaded at run time.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.np.arrayobj import populate_array

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.isa import ISA
from fastrnn.kernels.signature import Of, TupleOf, Types, arguments, text

from . import amx

numba.config.CPU_NAME, numba.config.CPU_FEATURES = ISA.level, ISA.features

_FROM_CALL = ("first", "last", "scratch")
_I64 = ir.IntType(64)
_ENTRY = ir.FunctionType(ir.VoidType(), [_I64.as_pointer(), _I64, _I64, _I64])


def kernel(function: Callable, name: str | None = None):
    """Make a kernel of a function whose arguments are annotated, see kernels/signature.py.

    It is serial, runs without the GIL and raises nothing. Numba names what it compiles after the
    function's module and name, so no two functions here may share a name: one that is made several
    times, for several cells, needs a ``name`` of its own.
    """
    if name:
        function.__qualname__ = name
    made = numba.njit(function, nogil=True, error_model="numpy", boundscheck=False)
    # Without _nrt nothing counts references, so nothing asks for Numba's runtime.
    made.targetoptions |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return made


def is_kernel(value) -> bool:
    """Whether it is what `kernel` returns."""
    return isinstance(value, Dispatcher)


def signature(kernel, form: Format) -> str:
    """What its slots hold, see `kernels.signature.text`."""
    return text(kernel.py_func, form.types(), without=_FROM_CALL)


@global_compiler_lock
def machine_code(kernel, symbol: str, form: Format) -> bytes:
    """The object file of a kernel, whose entry is called ``symbol``."""
    target = _target()
    return target.emit_object(_module(kernel, symbol, form, target))


@global_compiler_lock
def assembly(kernel, form: Format) -> str:
    """The same as text."""
    target = _target()
    return target.emit_assembly(_module(kernel, "kernel", form, target))


def _target():
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=ISA.level, features=ISA.features, opt=3, reloc="pic", codemodel="small"
    )


def _module(kernel, symbol: str, form: Format, target):
    """Everything that the kernel needs, with one visible function."""
    declared = arguments(kernel.py_func)
    wanted = tuple(_numba_type(argument, form.types()) for argument in declared.values())
    with _not_executed():
        kernel.compile(wanted)
    compiled = kernel.overloads[wanted]
    library = cpu_target.target_context.codegen().create_library(symbol)
    module = library.create_ir_module(symbol)
    _emit_entry(module, symbol, compiled, tuple(declared), form.name == "bf16_tiles")
    library.add_linking_library(compiled.library)
    library.add_ir_module(module)
    whole = library._final_module
    for other in dict.fromkeys(library._linking_libraries):
        whole.link_in(other._get_module_for_linking(), preserve=True)
    for symbol_of in (*whole.functions, *whole.global_variables):
        if not symbol_of.is_declaration and symbol_of.name != symbol:
            symbol_of.visibility = "default"
            symbol_of.linkage = "internal"  # other kernels contain functions of the same names
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=0))
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(whole, builder)
    whole.verify()
    return whole


class _NoEngine:
    """In place of what makes functions callable from Python."""

    _environment = ctypes.c_void_p()  # Numba writes each function's to its global variable

    def add_module(self, module):
        pass

    def finalize_object(self):
        pass

    def is_symbol_defined(self, name):
        return False

    def get_global_value_address(self, name):
        return ctypes.addressof(self._environment)


@contextmanager
def _not_executed() -> Iterator[None]:
    """Numba makes no machine code of its own, which takes a fifth of the time: only ours is run."""
    codegen = cpu_target.target_context.codegen()
    engine, codegen._engine = codegen._engine, _NoEngine()
    try:
        yield
    finally:
        codegen._engine = engine


def _numba_type(argument, letters: Types):
    if isinstance(argument, Of):
        name = argument.name(letters)
        number = types.boolean if name == "bool" else getattr(types, name)
        return types.Array(number, argument.ndim, "C") if argument.ndim else number
    if isinstance(argument, TupleOf):
        return types.UniTuple(_numba_type(argument.item, letters), argument.size)
    record, fields = argument
    return types.BaseTuple.from_types([_numba_type(f, letters) for f in fields.values()], record)


def _emit_entry(module, symbol: str, compiled, names: tuple[str, ...], tiles: bool) -> None:
    """The entry: read the slots, call the kernel in Numba's own calling convention; ``tiles``: it
    needs the registers of amx.py."""
    context, signature = cpu_target.target_context, compiled.signature
    function = ir.Function(module, _ENTRY, symbol)
    builder = ir.IRBuilder(function.append_basic_block())
    from_call = dict(zip(_FROM_CALL, function.args[1:], strict=True))
    slots = iter(range(1 << 16))

    def address():
        return builder.gep(function.args[0], [ir.Constant(_I64, next(slots))])

    def value(ty):
        if isinstance(ty, types.BaseTuple):
            return context.make_tuple(builder, ty, [value(item) for item in ty.types])
        if isinstance(ty, types.Array):
            return _array(context, builder, ty, address)
        slot = address()
        if ty == types.boolean:
            return builder.trunc(builder.load(slot), ir.IntType(1))
        return builder.load(builder.bitcast(slot, context.get_value_type(ty).as_pointer()))

    args = [
        from_call[name] if name in from_call else value(ty)
        for name, ty in zip(names, signature.args, strict=True)
    ]
    native = context.declare_function(module, compiled.fndesc)
    if tiles:
        amx.configure(builder)
    context.call_conv.call_function(builder, native, signature.return_type, signature.args, args)
    if tiles:
        amx.release(builder)
    builder.ret_void()


def _array(context, builder, ty, address):
    """An array from its address and its sizes."""
    out = context.make_array(ty)(context, builder)
    data = builder.inttoptr(builder.load(address()), out.data.type)
    shape = [builder.load(address()) for _ in range(ty.ndim)]
    item = ir.Constant(_I64, ty.dtype.bitwidth // 8)
    strides = [item]
    for size in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], size))
    populate_array(out, data, shape, strides, item, None)
    return out._getvalue()
