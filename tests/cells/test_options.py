"""Options of all cells: activation functions, zoneout and recurrent dropout."""

import functools

import numpy as np
import pytest

import fastrnn
from cell_cases import CASES
from fastrnn.cells.activations import ACTIVATIONS, activation, parse
from fastrnn.cells.oracle import function
from fastrnn.kernels.native import jit, library
from fastrnn.kernels.native.formats import plain
from fastrnn.kernels.native.source import equations, simd
from fastrnn.kernels.native.source.compiler import kernel
from fastrnn.kernels.signature import F1
from fastrnn.layers import GRU, LSTM, RNN
from fastrnn.runtime import threads
from helpers import check_close, check_gradient
from recurrent_layers import CELLS, draw, everything, pair, same_bits

X = np.concatenate([np.linspace(-9, 9, 2001), [0.0, 1e-6, -1e-6, 0.5, -1.0, 20.0, -20.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", [*ACTIVATIONS, "elu(0.5)", "affine(2, -1)", "hard_sigmoid(0.5)"])
def test_activations_as_vectors(spec, dtype):
    """Values and slopes, compiled and in plain Python, against NumPy in float64."""
    made = activation(spec)
    for name, part in made._asdict().items():
        equations.register(part, f"test.{spec}.{name}")
    run_function, run_slope = made

    def both(x: F1, y: F1, slope: F1):
        x_p, y_p, slope_p = simd.pointer(x), simd.pointer(y), simd.pointer(slope)
        for i in range(0, x.shape[0], simd.lane_count(x_p)):
            v = run_function(simd.load_first(x_p, i, x.shape[0] - i))
            simd.store_first(y_p, i, v, x.shape[0] - i)
            simd.store_first(slope_p, i, run_slope(v), x.shape[0] - i)

    x = X.astype(dtype)
    y, slope = np.zeros((2, len(x)), dtype)
    made_kernel = kernel(both, f"test_{spec}")
    jit.load(spec, plain(x.dtype), lambda: made_kernel, keep=False)(x, y, slope)
    forward, backward = function(parse(spec))
    wide = x.astype(np.float64)
    wanted = forward(wide)
    tolerance = {"float32": 5e-7, "float64": 1e-15}[dtype]
    scale = np.maximum(np.abs(wanted), 1)
    assert (np.abs(y - wanted) <= tolerance * scale).all()
    # The slope of what was computed: rounding may lie on the other side of a kink.
    assert np.abs(slope - backward(y.astype(np.float64), 1.0)).max() <= 4 * tolerance
    python = made.function(x)
    assert (np.abs(python - wanted) <= 2 * tolerance * scale).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (LSTM, ("sigmoid", "elu(0.7)", "scaled_tanh(1.5, 0.7)")),
        (GRU, ("hard_sigmoid", "softplus")),
        (RNN, ("leaky_relu(0.1)",)),
    ],
)
def test_layers_with_other_activations(rng, make, names):
    options = {"bidirectional": True, "activations": names, "seed": 0}
    ours = make(6, 11, 2, **options)
    oracle = make(6, 11, 2, dtype="float64", backend="reference", **options)
    oracle.load_state_dict(ours.state_dict())
    x, state, dy, dstate = draw(rng, ours, 5, 6)
    lengths = [5, 0, 2, 5, 1, 3]
    got, wanted = (everything(c, x, state, lengths, dy, dstate) for c in (ours, oracle))
    for name in got:
        check_close(got[name], wanted[name], "float32", name, least=1.0)


def test_refused_activations():
    with pytest.raises(ValueError, match="activations must be 3 names for the cell lstm, got 1"):
        LSTM(2, 3, activations=("tanh",))
    with pytest.raises(ValueError, match=r"activations must be one of sigmoid, .* got 'swish'"):
        GRU(2, 3, activations=("swish", "tanh"))
    for spec in ("leaky_relu(-0.1)", "elu(-1)", "scaled_tanh(0, 1)", "affine(nan)"):
        with pytest.raises(ValueError, match="takes"):
            parse(spec)
    with pytest.raises(ValueError, match=r"elu takes 1 numbers, got 'elu\(1, 2\)'"):
        RNN(2, 3, activations=("elu(1, 2)",))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_unbounded_activations_beyond_the_last_unit(rng, precision):
    """5 units in a vector of more: what grows in the others must not reach them."""
    activations = ("affine(1,1.5)", "sigmoid", "tanh")
    layer = LSTM(4, 5, activations=activations, precision=precision, seed=0)
    values = {k: v * 0 for k, v in layer.state_dict().items()}
    values["bias_ih_l0"][5:10] = -1  # real units forget
    layer.load_state_dict(values)
    y, _, tape = layer.forward(0.1 * rng.standard_normal((400, 2, 4)))
    dx, _, grads = layer.backward(tape, np.ones_like(y))
    assert np.isfinite(dx).all() and all(np.isfinite(g).all() for g in grads.values())


def test_calls_of_unfused_layers_make_no_new_kernels(rng):
    layer = GRU(4, 5, variant="reset_before", seed=0)
    x = rng.standard_normal((3, 2, 4))
    layer(x)
    before = library.find.cache_info().currsize
    layer(x)
    GRU(4, 5, variant="reset_before", seed=1)(x)
    assert library.find.cache_info().currsize == before


REGULARISED = {
    "zoneout": {"zoneout": (0.3, 0.6)},
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "both": {"zoneout": 0.2, "recurrent_dropout": 0.25},
}
each_option = pytest.mark.parametrize("options", REGULARISED.values(), ids=REGULARISED)
LENGTHS = [5, 0, 2, 5, 1, 3, 5]


UNFUSED = ["lstm_projected", "lstm_layer_norm", "gru_reset_before"]


def regularised(cell, options, *sizes, **more):
    if "zoneout" in options and cell.startswith("gru"):
        options = options | {"zoneout": 0.3}
    return CELLS[cell](*(sizes or (6, 11, 2)), bidirectional=True, seed=0, **options, **more)


@each_option
@pytest.mark.parametrize(
    ("cell", "backend"),
    [
        *((cell, "cpu") for cell in ("lstm", "gru", *UNFUSED)),
        *(
            pytest.param(cell, "cuda", marks=[pytest.mark.cuda, pytest.mark.slow])
            for cell in ("lstm", "lstm_projected")
        ),
    ],
)
def test_regularised_layers_agree_with_the_reference(rng, cell, options, backend):
    ours = regularised(cell, options, backend=backend)
    oracle = regularised(cell, options, dtype="float64", backend="reference")
    oracle.load_state_dict(ours.state_dict())
    x, state, dy, dstate = draw(rng, ours, 5, len(LENGTHS))
    # Both draw the same masks, as their generators are in the same state.
    got, wanted = (everything(c, x, state, LENGTHS, dy, dstate) for c in (ours, oracle))
    for name in got:
        check_close(got[name], wanted[name], "float32", name, 1.0, CASES[cell].condition)
    y, _ = ours(x, state, LENGTHS)
    check_close(y, oracle(x, state, LENGTHS)[0], "float32", condition=CASES[cell].condition)
    assert np.array_equal(y, ours(x, state, LENGTHS)[0])  # inference draws nothing
    assert not np.allclose(y, got["y"])


@each_option
@pytest.mark.parametrize("cell", ["lstm", *UNFUSED])
def test_gradients_through_masks(rng, cell, options):
    layer = regularised(cell, options, 3, 7, dtype="float64")
    lengths = [4, 0, 3, 1]
    x, state, dy, dstate = draw(rng, layer, 4, 4)
    names = list(layer.parameters)

    def forward(x, state):
        layer.rng = np.random.default_rng(7)
        return layer.forward(x, state, lengths)

    count = len(pair(state))

    def loss(x, *values):
        layer.load_state_dict(dict(zip(names, values[count:], strict=True)))
        y, state_n, _ = forward(x, values[:count] if count > 1 else values[0])
        pairs = zip((y, *pair(state_n)), (dy, *pair(dstate)), strict=True)
        return float(sum((a * b).sum() for a, b in pairs))

    _, _, tape = forward(x, state)
    dx, dstate_0, grads = layer.backward(tape, dy, dstate)
    weights = list(layer.state_dict().values())
    ours = [dx, *pair(dstate_0), *(grads[n] for n in names)]
    tolerance = 1e-5 * CASES[cell].condition  # some of these gradients are tiny
    check_gradient(loss, [x, *pair(state), *weights], ours, tolerance=tolerance)


@pytest.mark.parametrize("cell", ["lstm", "lstm_projected"])
def test_masks_do_not_depend_on_the_threads(rng, monkeypatch, cell):
    monkeypatch.setattr(threads, "MIN_WORK", 1)
    x, dy = rng.standard_normal((9, 20, 6)), None
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        layer = regularised(cell, REGULARISED["both"])
        y, _, tape = layer.forward(x)
        dy = rng.standard_normal(y.shape) if dy is None else dy
        results.append({"y": y, **layer.backward(tape, dy)[2]})
    for other in results[1:]:
        same_bits(results[0], other)


@pytest.mark.parametrize("variant", [None, "layer_norm"])
def test_zoneout_and_recurrent_dropout_do_what_they_say(rng, variant):
    make = functools.partial(LSTM, variant=variant)
    x = rng.standard_normal((4, 3, 2))
    # Nothing new is ever kept: the state stays.
    layer = make(2, 5, zoneout=1.0, seed=0)
    state = tuple(rng.standard_normal((1, 3, 5)).astype("f") for _ in range(2))
    y, (h, c), _ = layer.forward(x, state)
    assert np.array_equal(h, state[0]) and np.array_equal(c, state[1])
    assert np.array_equal(y, np.broadcast_to(h, y.shape))
    # A step with zoneout is that of a sequence.
    layer = make(2, 5, 2, zoneout=(0.2, 0.5), seed=0)
    y, _ = layer(x)
    state = None
    for t in range(4):
        y_t, state = layer.step(x[t], state)
        assert np.array_equal(y_t, y[t])
    # The first step sees no h, so dropping it changes only later ones.
    plain, dropped = make(2, 5, seed=0), make(2, 5, recurrent_dropout=0.5, seed=0)
    y, other = plain.forward(x)[0], dropped.forward(x)[0]
    assert np.array_equal(y[0], other[0]) and not np.array_equal(y[1], other[1])
    assert np.array_equal(plain(x)[0], dropped(x)[0])
    assert "zoneout=(0.2, 0.5)" in repr(layer) and "recurrent_dropout=0.5" in repr(dropped)


def test_refused_options():
    with pytest.raises(ValueError, match=r"zoneout must be in \[0.0, 1.0\], got 1.5"):
        LSTM(2, 3, zoneout=1.5)
    with pytest.raises(ValueError, match="zoneout must be a number or one for each of h, got"):
        GRU(2, 3, zoneout=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"recurrent_dropout must be in \[0.0, 1.0\), got 1.0"):
        LSTM(2, 3, recurrent_dropout=1.0)
    for variant in (None, "layer_norm"):
        layer = LSTM(2, 3, variant=variant, zoneout=0.1)
        y, _, _ = layer.forward(np.zeros((3, 2, 2)), lengths=[0, 0])
        assert not y.any()
    for constants, error in (({"cell_clip": "a"}, TypeError), ({"cell_clip": -1.0}, ValueError)):
        with pytest.raises(error, match=r"constants\['cell_clip'\] must be"):
            LSTM(2, 3, variant="clipped", constants=constants)
    with pytest.raises(ValueError, match="proj_size must be 0 for GRU and the variant None, got 3"):
        GRU(2, 3, proj_size=3)
    with pytest.raises(TypeError, match="activations must be a sequence of names, got str"):
        LSTM(2, 3, activations="tanh")
    with pytest.raises(ValueError, match="constants must be cell_clip, got"):
        LSTM(2, 3, variant="clipped")
    with pytest.raises(ValueError, match="constants must be none, got"):
        LSTM(2, 3, constants={"cell_clip": 1.0})
    with pytest.raises(ValueError, match=r"variant must be one of .*; got 'deep'"):
        LSTM(2, 3, variant="deep")
