"""Products in lower precision: rounding, formats, bounds of the error, the same bits everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn.kernels.cpu import linear, weights
from fastrnn.kernels.native import formats, isa
from fastrnn.kernels.native.library import find
from fastrnn.kernels.options import Embedded
from fastrnn.kernels.reference.rounding import through_int8, to_bf16
from fastrnn.packed import PackedBatch
from helpers import difference
from recurrent_layers import BASIC, CELLS, draw, everything, same_bits

IS_AVX512 = isa.ISA.vector_bytes == 64
FULL = isa.ISA.bf16 in ("bf16", "bf16_tiles")  # both operands are rounded, and not only weights
# Largest error, relative to the largest number of the float64 result: rounding to 8 bits is 2**-9.
BOUND = {"bf16": 2e-2, "int8": 3e-2}
# The same against the emulation, which sums in another order; a sum that is rounded may then be
# the next number in bfloat16.
CLOSE = 4e-3


@pytest.fixture
def choose(monkeypatch):
    """A function that has the precision bf16 computed in the format of a name."""

    def clear():
        formats.choose.cache_clear()
        weights._shape.cache_clear()

    def use(name):
        chosen = isa.ISA._replace(bf16=name)
        monkeypatch.setattr(formats, "ISA", chosen)
        clear()

    yield use
    monkeypatch.undo()
    clear()


def emulated(*names):
    """Formats in instructions that every CPU of the path has; they are compiled now."""
    pytest.importorskip("numba")
    if not IS_AVX512:
        pytest.skip("the emulation is for vectors of 64 bytes")
    return names


# Rounding


def bit_patterns(rng):
    """All kinds of float32: any bits, ties, the largest, infinite, NaN, tiny."""
    drawn = rng.integers(0, 2**32, 5000, dtype=np.uint32)
    ties = (drawn[:1000] & 0xFFFF0000) | 0x8000
    special = [0, 0x80000000, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
               0x7FFFFFFF, 0x7F800001, 0x3F808000, 0x3F818000]  # fmt: skip
    bits = np.concatenate([drawn, ties, np.array(special, np.uint32)])
    return np.resize(bits, -(-len(bits) // 64) * 64).view(np.float32).reshape(-1, 64)


@pytest.mark.parametrize("name", ["of this CPU", "bf16_emulated"])
def test_rounding(rng, name):
    if name == "of this CPU":
        if not isa.ISA.bf16:
            pytest.skip("this CPU has no instructions for bfloat16")
        name = isa.ISA.bf16
    emulated()
    a = bit_patterns(rng)
    out = np.zeros(a.shape, np.uint16)
    find("rows.to_activations", formats.FORMATS[name])(a, out, 0, len(a))
    got = (out.astype(np.uint32) << 16).view(np.float32)
    wanted = to_bf16(a)
    assert np.array_equal(got, wanted, equal_nan=True)
    zero = wanted == 0
    assert np.array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]))


def test_the_emulation_of_rounding():
    """Against PyTorch's meaning of the format: hand values."""
    pairs = [
        (1.0, 1.0), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (1 + 2**-7, 1 + 2**-7),
        (-3.14159, -3.140625), (3.4e38, np.inf), (2.0**-130, 0.0), (np.inf, np.inf),
    ]  # fmt: skip
    with np.errstate(over="ignore"):
        for given_, wanted in pairs:
            assert to_bf16(np.array([given_], np.float32))[0] == np.float32(wanted), given_
    assert np.isnan(to_bf16(np.array([np.nan], np.float32)))[0]


def test_int8_weights():
    w = np.array([[1.0, -127.0, 0.5], [0.0, 0.0, 0.0], [0.1, 0.2, -0.3]], np.float32)
    got = through_int8(w)
    assert np.array_equal(got[1], [0, 0, 0])
    assert np.abs(got - w).max(axis=1)[0] <= 0.5 and difference(got[2], w[2]) <= 0.5 / 127
    assert got[0, 1] == pytest.approx(-127)


# Linear layers


def products(precision, x, w, dy):
    ours = linear.LinearWeights(w, None, precision)
    y = linear.linear_forward(ours, x)
    return (y, *linear.linear_backward(ours, x, dy)) if precision == "bf16" else (y,)


@pytest.mark.parametrize("inputs", [1, 2])
def test_short_sums_are_exact(rng, inputs):
    """One rounding at most, so the emulation has the same bits."""
    if not FULL:
        pytest.skip("this CPU multiplies bfloat16 by float32")
    x, w = (rng.standard_normal((n, inputs)).astype("f") for n in (70, 33))
    (y, *_) = products("bf16", x, w, np.zeros((70, 33), "f"))
    exact = to_bf16(x).astype(float) @ to_bf16(w).astype(float).T
    assert np.array_equal(y, exact.astype("f"))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 1100), inputs=st.integers(1, 70), outputs=st.integers(1, 140))
def test_linear(n, inputs, outputs):
    rng = np.random.default_rng(n)
    x, w, dy = (
        rng.standard_normal(s).astype("f") for s in ((n, inputs), (outputs, inputs), (n, outputs))
    )
    halves = [to_bf16(a).astype(float) for a in (x, w, dy)] if FULL else [x, to_bf16(w), dy]
    a, b, d = halves
    wanted = [a @ b.T, d @ (b if FULL else w), d.T @ a, d.sum(axis=0)]
    for got, right in zip(products("bf16", x, w, dy), wanted, strict=True):
        assert difference(got, right, least=1.0) < 2e-5
    (y,) = products("int8", x, w, dy)
    scale = np.abs(x).max(axis=1, initial=0, keepdims=True) / 32767
    whole = scale * np.rint(x / np.where(scale == 0, 1, scale))
    assert difference(y, whole.astype(float) @ through_int8(w).astype(float).T, least=1.0) < 2e-5


def test_sums_of_integers_do_not_overflow():
    """All of the largest size and of one sign, for short and long sums."""
    for inputs in (1, 500, 517, 5000):
        x, w = np.full((3, inputs), 2.5, "f"), np.full((20, inputs), -0.3, "f")
        (y,) = products("int8", x, w, None)
        assert difference(y, np.full((3, 20), -0.75 * inputs)) < 1e-3
    for x in (np.zeros((2, 7), "f"), np.full((2, 7), 1e-38, "f")):
        (y,) = products("int8", x, np.ones((5, 7), "f"), None)
        assert np.abs(y).max() < 1e-36


@pytest.mark.parametrize("name", ["bf16_emulated", "bf16_tiles_emulated"])
def test_linear_by_other_instructions(rng, choose, name):
    (name,) = emulated(name)
    results = []
    for n, inputs, outputs in ((1, 1, 1), (37, 50, 70), (530, 17, 129)):
        args = [rng.standard_normal(s).astype("f") for s in ((n, inputs), (outputs, inputs))]
        args.append(rng.standard_normal((n, outputs)).astype("f"))
        choose(name)
        results.append(products("bf16", *args))
        x, w, dy = (to_bf16(a).astype(float) for a in args)
        for got, right in zip(results[-1], (x @ w.T, dy @ w, dy.T @ x), strict=False):
            assert difference(got, right, least=1.0) < 2e-5
        if name == "bf16_emulated" and isa.ISA.bf16 == "bf16":
            choose("bf16")
            for a, b in zip(products("bf16", *args), results[-1], strict=True):
                assert np.array_equal(a, b)


# Recurrent layers


def compare(cell, precision, rng, lengths, *, batch=7, steps=6, **options):
    """A layer against its emulation, and both against float64."""
    ours = CELLS[cell](5, 19, precision=precision, seed=0, **options)
    oracle = CELLS[cell](5, 19, precision=precision, seed=0, backend="reference", **options)
    exact = CELLS[cell](5, 19, dtype="float64", seed=0, backend="reference", **options)
    exact.load_state_dict(ours.state_dict())
    oracle.load_state_dict(ours.state_dict())
    x, state, dy, dstate = draw(rng, ours, steps, batch)
    y = ours(x, state, lengths)[0]
    assert difference(y, oracle(x, state, lengths)[0]) < (CLOSE if FULL else BOUND[precision])
    assert difference(y, exact(x, state, lengths)[0]) < BOUND[precision]
    if precision == "int8":
        return
    got, wanted, right = (
        everything(layer, x, state, lengths, dy, dstate) for layer in (ours, oracle, exact)
    )
    for name in got:
        if FULL:
            assert difference(got[name], wanted[name]) < 2 * CLOSE, name
        assert difference(got[name], right[name]) < 2 * BOUND[precision], name


# The slope of relu jumps, so a rounded sum may have quite another gradient.
SMOOTH = [name for name in CELLS if "relu" not in name]


@pytest.mark.parametrize("cell", SMOOTH)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_cells(cell, precision, rng):
    compare(cell, precision, rng, [6, 5, 5, 3, 1, 0, 4], bidirectional=True)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("units", [1, 16, 33, 64])
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (9, 1), (4, 40)])
def test_shapes(rng, precision, units, steps, batch):
    for cell in BASIC:
        ours = CELLS[cell](3, units, precision=precision, seed=0)
        oracle = CELLS[cell](3, units, precision=precision, seed=0, backend="reference")
        x = rng.standard_normal((steps, batch, 3))
        assert difference(ours(x)[0], oracle(x)[0], least=0.1) < (2e-2 if not FULL else CLOSE)


@pytest.mark.parametrize("options", [{"zoneout": 0.2}, {"recurrent_dropout": 0.3}, {"bias": False}])
def test_options(rng, options):
    compare("lstm", "bf16", rng, None, num_layers=2, **options)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_bits_do_not_depend_on_the_batch_or_the_threads(cell, precision, rng):
    layer = CELLS[cell](40, 70, precision=precision, bidirectional=True, seed=0)
    lengths = np.array([9, 4, 9, 1, 7, 9, 2, 9, 5])
    x = rng.standard_normal((9, len(lengths), 40)).astype("f")
    whole = layer(x, lengths=lengths)[0]
    for b, length in enumerate(lengths):
        for _ in range(3):  # also by a plan
            alone = layer(x[:length, b])[0]
            assert np.array_equal(alone, whole[:length, b])
    if precision == "int8":
        return
    dy, results = rng.standard_normal(whole.shape), []
    for threads in 1, 2, 3:
        fastrnn.set_num_threads(threads)
        y, _, tape = layer.forward(x, lengths=lengths)
        dx, _, grads = layer.backward(tape, dy)
        assert np.array_equal(y, whole)
        results.append({"dx": dx, **grads})
    same_bits(results[0], results[1])
    same_bits(results[0], results[2])


def test_step_has_the_bits_of_the_sequence(rng):
    for precision in "bf16", "int8":
        layer = fastrnn.LSTM(20, 40, 2, precision=precision, seed=0)
        x, state = rng.standard_normal((6, 3, 20)).astype("f"), None
        whole, _ = layer(x)
        for t in range(6):
            y, state = layer.step(x[t], state)
            assert np.array_equal(y, whole[t])


@pytest.mark.parametrize("bias", [0.0, 2.0, 7.0])
def test_long_gradients(rng, bias):
    """Through 600 steps and forget gates of up to 0.999: that gates are kept in float16 adds
    nothing to the error of the rounded products."""
    exact = fastrnn.LSTM(4, 20, dtype="float64", backend="reference", seed=0)
    ours = fastrnn.LSTM(4, 20, precision="bf16", seed=0)
    emulated = fastrnn.LSTM(4, 20, precision="bf16", backend="reference", seed=0)
    values = exact.state_dict()
    values["bias_ih_l0"][20:40] = bias
    x, results = 0.1 * rng.standard_normal((600, 3, 4)), []
    for layer in exact, ours, emulated:
        layer.load_state_dict(values)
        y, _, tape = layer.forward(x)
        dy = np.zeros_like(y)
        dy[-1] = 1
        dx, _, grads = layer.backward(tape, dy)
        results.append({"dx": dx, **grads})
    for name, right in results[0].items():
        error, unavoidable = (np.linalg.norm(r[name] - right) for r in results[1:])
        assert error < 1.5 * unavoidable + 5e-3 * np.linalg.norm(right), name


def test_one_hot_input(rng):
    layer = fastrnn.LSTM(9, 20, precision="bf16", bidirectional=True, seed=0)
    packed = PackedBatch(6, 4, np.array([6, 2, 0, 5]))
    ids, dy = rng.integers(0, 9, packed.size), rng.standard_normal((packed.size, 40)).astype("f")
    results = []
    for x in ids, np.eye(9, dtype="f")[ids]:
        y, _, tape = layer.rows_forward(x, packed, training=True)
        results.append({"y": y} | layer.rows_backward(tape, dy, need_dx=False)[2])
    for name, wanted in results[1].items():  # a table has weights that are not rounded
        assert difference(results[0][name], wanted) < BOUND["bf16"], name


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_embedded_input(cell, precision, rng):
    """The bits of the gathered rows, and gradients of the vectors."""
    layer = CELLS[cell](21, 40, 2, bidirectional=True, precision=precision, seed=0)
    packed = PackedBatch(9, 5, np.array([9, 3, 0, 5, 1]))
    vectors, ids = rng.standard_normal((7, 21)).astype("f"), rng.integers(0, 6, packed.size)
    given = Embedded(vectors, ids)
    y, (h, *_), _ = layer.rows_forward(vectors[ids], packed)
    got, (got_h, *_), _ = layer.rows_forward(given, packed)
    assert np.array_equal(y, got) and np.array_equal(h, got_h)
    if precision == "int8":
        return
    dy, results = rng.standard_normal(y.shape).astype("f"), []
    for x in vectors[ids], given:
        got, _, tape = layer.rows_forward(x, packed, training=True)
        assert np.array_equal(got, y)
        dx, _, grads = layer.rows_backward(tape, dy)
        if x is not given:
            dx = fastrnn.scatter_add_rows(dx, ids, out=np.zeros_like(vectors))
        results.append({"dx": dx, **grads})
    assert not results[1]["dx"][6].any()  # no row has this vector
    for name, wanted in results[0].items():
        bound = 2e-5 if precision == "float32" else BOUND["bf16"]
        assert difference(results[1][name], wanted) < bound, name


@pytest.mark.parametrize("name", ["bf16_tiles_emulated", "bf16_weights", "bf16_emulated"])
def test_layers_by_other_instructions(rng, choose, name):
    if name != "bf16_weights":
        emulated(name)
    # 47 units end in a register of AMX that is half full.
    layer = fastrnn.LSTM(21, 47, bidirectional=True, precision="bf16", seed=0)
    exact = fastrnn.LSTM(21, 47, bidirectional=True, seed=0)
    lengths = np.r_[[12, 0, 1], rng.integers(1, 12, 30)]
    x, dy = rng.standard_normal((12, 33, 21)), rng.standard_normal((12, 33, 94))
    native = everything(layer, x, None, lengths, dy, None)
    choose("" if name == "bf16_weights" else name)
    layer._packed.clear()
    got = everything(layer, x, None, lengths, dy, None)
    right = everything(exact, x, None, lengths, dy, None)
    y = layer(x, lengths=lengths)[0]
    if name == "bf16_weights":
        same_bits(got, right)  # training is in float32
        assert 1e-5 < difference(y, right["y"]) < BOUND["bf16"]
        return
    for key in got:
        assert difference(got[key], right[key]) < BOUND["bf16"], key
    assert np.array_equal(y, got["y"])
    # One row is multiplied by other instructions than several.
    alone, _, tape = layer.forward(x[:, 0])
    assert np.array_equal(alone, y[:, 0])
    assert np.array_equal(layer.backward(tape, dy[:, 0])[0], got["dx"][:, 0])
    if name == "bf16_emulated" and isa.ISA.bf16 == "bf16":
        same_bits(got, native)


def test_tiles_are_real_instructions(tmp_path):
    """Compiled for a CPU with AMX, on whatever runs this."""
    pytest.importorskip("numba")
    if not isa.X86:
        pytest.skip("AMX is x86's")
    from helpers import python

    code = """
from fastrnn.kernels.native.formats import FORMATS
from fastrnn.kernels.native.source import compiler, gemm
form = FORMATS["bf16_tiles"]
print(compiler.assembly(gemm.product(form), form))
"""
    text = python(code, tmp_path, FASTRNN_COMPILE_FOR="amx")
    for instruction in "ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease":
        assert instruction in text


# What is refused


def test_what_cannot_be(rng):
    with pytest.raises(
        ValueError, match=r"precision must be one of float32, bf16, int8; got 'fp8'"
    ):
        fastrnn.LSTM(2, 3, precision="fp8")
    with pytest.raises(
        ValueError, match="precision must be float32 with dtype float64, got 'bf16'"
    ):
        fastrnn.Linear(2, 3, precision="bf16", dtype="float64")
    layer, x = fastrnn.GRU(2, 3, precision="int8", seed=0), rng.standard_normal((4, 2, 2))
    for other in layer, fastrnn.Linear(2, 3, precision="int8", seed=0):
        other(x)
        with pytest.raises(
            ValueError, match="precision must be float32 or bf16 for training, got 'int8'"
        ):
            other.forward(x)
    layer.precision = "float32"
    y, _, tape = layer.forward(x)
    layer.precision = "bf16"
    with pytest.raises(ValueError, match="tape is of another layer"):
        layer.backward(tape, y)
    assert "precision='bf16'" in repr(layer)
