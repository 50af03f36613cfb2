"""The oracle itself: hand values, gradients and PyTorch, without any other code of ours."""

import ast
import inspect

import numpy as np
import pytest

from cell_cases import CASES
from fastrnn import cells
from fastrnn.cells import oracle
from fastrnn.cells.activations import ACTIVATIONS, parse
from fastrnn.kernels.reference import recurrent
from helpers import check_close, check_gradient, needs_torch

each_cell = pytest.mark.parametrize("name", CASES)
each_direction = pytest.mark.parametrize("reverse", [False, True])


def problem(rng, cell, steps, batch, inputs, units):
    """``x``, the parameters by name, and the states."""
    rows = len(cell.gates) * units
    size = units - 1 if any("P" in p.shape for p in cell.parameters) else units  # of h
    shapes = {
        "weight_ih": (rows, inputs), "weight_hh": (rows, size),
        "bias_ih": (rows,), "bias_hh": (rows,), **dict.fromkeys(cell.unit_inputs, (units,)),
        **{p.name: cell.shape(p, units, size) for p in cell.parameters},
    }  # fmt: skip
    w = {n: rng.standard_normal(shape) for n, shape in shapes.items()}
    w |= {n: np.abs(w[n]) for n in cell.unit_constants}  # such as a limit
    sizes = [size if s == "h" else units for s in cell.states]
    states = tuple(rng.standard_normal((batch, n)) for n in sizes)
    return rng.standard_normal((steps, batch, inputs)), w, states


def test_every_cell_has_a_case():
    assert set(CASES) == set(cells.CELLS)


X, STATE = 0.5, (-0.25, 0.75)
W, U, B, B2 = (1.0, -2.0, 0.5, 3.0), (0.1, 0.2, -0.3, 0.4), (0.01, 0.02, 0.03, 0.04), (0.5,) * 4
P = (0.3, -0.6, 0.9)


@each_cell
def test_one_step_by_hand(name):
    """One unit, one input: z = w x + u h + b + b' with a different w for every gate."""
    cell = cells.CELLS[name]
    n, state = len(cell.gates), STATE[: len(cell.states)]
    p = dict(zip(cell.unit_inputs, P, strict=False))
    for parameter in cell.parameters:
        shape = cell.shape(parameter, 1, 1)
        p[parameter.name] = np.linspace(0.5, 1.4, shape[0]).tolist()
    matrices = {q.name: cell.shape(q, 1, 1) for q in cell.parameters}
    w = {
        "weight_ih": np.array(W[:n])[:, None], "weight_hh": np.array(U[:n])[:, None],
        "bias_ih": np.array(B[:n]), "bias_hh": np.array(B2[:n]),
        **{k: np.array(v).reshape(matrices.get(k, (1,))) for k, v in p.items()},
    }  # fmt: skip
    y, new, _ = recurrent.forward(
        cell, np.array([[[X]]]), np.array([1]), w, tuple(np.array([[v]]) for v in state)
    )
    assert y[0, 0, 0] == new[0][0, 0]
    of_x = [w * X + b for w, b in zip(W[:n], B, strict=False)]
    of_h = [u * state[0] + b for u, b in zip(U[:n], B2, strict=False)]
    p |= {"bias_ih": B[:n], "bias_hh": B2[:n]}
    wanted = CASES[name].hand(of_x, of_h, state, p)
    assert [float(v[0, 0]) for v in new] == pytest.approx(list(wanted), abs=1e-15)


@each_direction
@each_cell
def test_gradients_of_every_input(rng, name, reverse):
    cell = cells.CELLS[name]
    lengths = np.array([4, 0, 2, 1])
    x, w, states = problem(rng, cell, 4, 4, 3, 2)
    dy = rng.standard_normal((4, *states[0].shape))
    dstates = [rng.standard_normal(s.shape) for s in states]
    constants = {n: w.pop(n) for n in cell.unit_constants}

    def loss(x, *rest):
        named = dict(zip(w, rest, strict=False)) | constants
        y, state, _ = recurrent.forward(cell, x, lengths, named, rest[len(w) :], reverse=reverse)
        return float(
            (y * dy).sum() + sum((a * b).sum() for a, b in zip(state, dstates, strict=True))
        )

    cache = recurrent.forward(cell, x, lengths, w | constants, states, reverse=reverse)[2]
    dx, dstate, dw = recurrent.backward(cell, x, w | constants, cache, dy, tuple(dstates))
    check_gradient(loss, [x, *w.values(), *states], [dx, *(dw[n] for n in w), *dstate])


@each_cell
def test_nothing_beyond_a_length(rng, name):
    cell = cells.CELLS[name]
    lengths = np.array([3, 0, 1])
    x, w, states = problem(rng, cell, 3, 3, 2, 2)
    y, state_n, _ = recurrent.forward(cell, x, lengths, w, states)
    assert not y[:, 1].any() and not y[1:, 2].any()
    assert all((a[1] == b[1]).all() for a, b in zip(state_n, states, strict=True))
    assert (state_n[0][2] == y[0, 2]).all()
    moved = x.copy()
    moved[1:, 2] += 5
    assert (recurrent.forward(cell, moved, lengths, w, states)[0] == y).all()


@each_cell
def test_reverse_is_forward_on_the_flipped_sequence(rng, name):
    cell = cells.CELLS[name]
    lengths = np.array([4, 2])
    x, w, states = problem(rng, cell, 4, 2, 3, 2)
    y, state_n, _ = recurrent.forward(cell, x, lengths, w, states, reverse=True)
    for b, n in enumerate(lengths):
        state = tuple(s[b : b + 1] for s in states)
        flipped, last, _ = recurrent.forward(cell, x[:n, b : b + 1][::-1], np.array([n]), w, state)
        check_close(flipped[::-1, 0], y[:n, b], "float64")
        for got, wanted in zip(last, state_n, strict=True):
            check_close(got[0], wanted[b], "float64")


@needs_torch
@each_direction
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.torch])
def test_agrees_with_torch(rng, name, reverse):
    import torch

    cell, (kind, options) = cells.CELLS[name], CASES[name].torch
    steps, batch, inputs, units = 5, 3, 4, 6
    lengths = np.array([5, 2, 3])
    x, w, states = problem(rng, cell, steps, batch, inputs, units)
    twin = getattr(torch.nn, kind)(inputs, units, bidirectional=True, **options).double()
    suffix = "_reverse" if reverse else ""
    theirs_by_name = {n: getattr(twin, f"{n}_l0{suffix}") for n in w}
    with torch.no_grad():
        for n, parameter in theirs_by_name.items():
            parameter.copy_(torch.from_numpy(w[n]))
    leaf = [torch.tensor(v, requires_grad=True) for v in (x, *states)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(leaf[0], lengths, enforce_sorted=False)
    pairs = [(torch.zeros_like(s), s) for s in leaf[1:]]
    both = tuple(torch.stack(pair if reverse else pair[::-1]) for pair in pairs)
    out, state_n = twin(packed, both if len(both) == 2 else both[0])
    out = torch.nn.utils.rnn.pad_packed_sequence(out)[0]
    d = int(reverse)
    state_n = state_n if len(both) == 2 else (state_n,)
    size = states[0].shape[1]
    theirs = [out[..., d * size : (d + 1) * size], *(s[d] for s in state_n)]
    dy, *dstates = (rng.standard_normal(v.shape) for v in theirs)
    torch.autograd.backward(theirs, [torch.from_numpy(g) for g in (dy, *dstates)])

    y, state, cache = recurrent.forward(cell, x, lengths, w, states, reverse=reverse)
    for got, wanted in zip((y, *state), theirs, strict=True):
        check_close(got, wanted.detach().numpy(), "float64")
    dx, dstate, dw = recurrent.backward(cell, x, w, cache, dy, tuple(dstates))
    for got, wanted in zip((dx, *dstate), (v.grad for v in leaf), strict=True):
        check_close(got, wanted.numpy(), "float64")
    for n, parameter in theirs_by_name.items():
        check_close(dw[n], parameter.grad.numpy(), "float64", n)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivatives_of_the_activations(rng, name):
    function, backward = oracle.function(parse(name))
    x, dy = rng.standard_normal((2, 50)) * 2
    check_gradient(lambda x: float((function(x) * dy).sum()), [x], [backward(function(x), dy)])


def test_the_references_share_nothing_with_the_kernels():
    """A reference refers to NumPy, to `oracle` and to itself, and to nothing else."""
    for cell in cells.CELLS.values():
        tree = ast.parse(inspect.getsource(inspect.getmodule(cell.reference)))
        function = next(
            node for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == cell.reference.__name__
        )  # fmt: skip
        names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
        shared = names & set(cell.reference.__globals__)
        assert shared <= {"np", "oracle", "Reference"}, (cell.name, shared)
    imported = {
        n.names[0].name for n in ast.walk(ast.parse(inspect.getsource(oracle)))
        if isinstance(n, (ast.Import, ast.ImportFrom))
    }  # fmt: skip
    assert imported <= {"numpy", "Callable"}
