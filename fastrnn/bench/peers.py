"""The same recurrent layers in whichever other packages are installed.

Each function takes one of our layers (one layer; one direction, two in `torch_ragged`) and an
input [T, B, I], and returns ``{name: function}``; forward results are checked against ours.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.layers import GRU, LSTM
from fastrnn.runtime.threads import cpus, get_num_threads


def has(*modules: str) -> bool:
    """Whether all of these are installed."""
    return all(importlib.util.find_spec(m) is not None for m in modules)


def _all_cpus() -> bool:
    """Whether we use all CPUs, as JAX always does; if not, JAX would have more threads than us."""
    return get_num_threads() == len(cpus())


def torch_twin(layer):
    """The same layer with the same weights in torch, or None if torch is not installed."""
    if not has("torch"):
        return None
    import torch

    torch.set_num_threads(get_num_threads())
    twin = getattr(torch.nn, type(layer).__name__)(
        layer.input_size, layer.hidden_size, bidirectional=layer.bidirectional
    )
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in layer.state_dict().items()})
    return twin


def forward(layer, x) -> dict:
    """Inference of a whole batch."""
    found = _torch(layer, x) | _onnx(layer, x)
    return found | _jax(layer, x) | _keras(layer, x) if _all_cpus() else found


def training(layer, x, dy) -> dict:
    """Forward and backward, with the gradient of the input."""
    found = torch_training(layer, x, dy)
    return found | _jax_training(layer, x, dy) if _all_cpus() else found


def steps(layer, x) -> dict:
    """One step of x per call, with the state passed from call to call."""
    return _torch_steps(layer, x) | onnx_steps(layer, x)


def _torch(layer, x) -> dict:
    twin = torch_twin(layer)
    if twin is None:
        return {}
    import torch

    x_t = torch.from_numpy(x)

    def run():
        with torch.no_grad():
            return twin(x_t)[0].numpy()

    return {"torch": run}


def _same(value):
    return value


def torch_training(layer, x, dy, *, wrap: Callable = _same) -> dict:
    """As `training`; ``wrap`` is what the forward pass runs in, as a function of a function."""
    twin = torch_twin(layer)
    if twin is None:
        return {}
    import torch

    x_t, dy_t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    call = wrap(lambda: twin(x_t)[0])
    dy_t = dy_t.to(call().dtype)

    def run():
        x_t.grad = None
        twin.zero_grad(set_to_none=True)
        call().backward(dy_t)

    return {"torch": run}


def torch_ragged(layer, x, lengths, dy, *, wrap: Callable = _same) -> dict:
    """Training on a ragged batch, padded (the padding is computed too) and packed."""
    twin = torch_twin(layer)
    if twin is None:
        return {}
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    x_t, dy_t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
    lengths_t = torch.from_numpy(lengths)

    def of_packed():
        rows = pack_padded_sequence(x_t, lengths_t, enforce_sorted=False)
        return pad_packed_sequence(twin(rows)[0])[0]

    def trained(forward):
        forward = wrap(forward)

        def run():
            x_t.grad = None
            twin.zero_grad(set_to_none=True)
            y = forward()
            y.backward(dy_t.to(y.dtype))

        return run

    return {"torch, padded": trained(lambda: twin(x_t)[0]), "torch, packed": trained(of_packed)}


def _torch_steps(layer, x) -> dict:
    twin = torch_twin(layer)
    if twin is None:
        return {}
    import torch

    x_t = torch.from_numpy(x)
    name = type(layer).__name__ + "Cell"
    cell = getattr(torch.nn, name)(layer.input_size, layer.hidden_size)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in twin.state_dict().items()})

    @torch.no_grad()
    def whole():
        y: Any = None
        state: Any = None
        for t in range(len(x)):
            y, state = twin(x_t[t : t + 1], state)
        return y.numpy()

    @torch.no_grad()
    def cells():
        state: Any = None
        for t in range(len(x)):
            state = cell(x_t[t], state)
        return (state[0] if isinstance(state, tuple) else state).numpy()[None]

    return {"torch": whole, f"torch {name}": cells}


def _session(layer, steps, batch, change: Callable = _same):
    """An ONNX model of the layer, changed, in onnxruntime; None where it is not installed."""
    if not has("onnx", "onnxruntime"):
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind = type(layer).__name__
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[kind]  # ONNX: i, o, f, c
    own = layer.state_dict()

    def gates(name):
        parts = np.split(own[f"{name}_l0"], len(order))
        return np.concatenate([parts[g] for g in order])

    values = {
        "W": gates("weight_ih")[None],
        "R": gates("weight_hh")[None],
        "B": np.concatenate([gates("bias_ih"), gates("bias_hh")])[None],
    }
    h, states = layer.hidden_size, ["h", "c"][: 2 if kind == "LSTM" else 1]
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(
        kind, ["x", "W", "R", "B", "", *states], ["y", *(s + "_n" for s in states)],
        hidden_size=h, **options,
    )  # fmt: skip

    def tensor(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node], "layer",
        [tensor("x", steps, batch, layer.input_size), *(tensor(s, 1, batch, h) for s in states)],
        [tensor("y", steps, 1, batch, h), *(tensor(s + "_n", 1, batch, h) for s in states)],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads, chosen.log_severity_level = get_num_threads(), 3
    return onnxruntime.InferenceSession(
        change(model).SerializeToString(), chosen, providers=["CPUExecutionProvider"]
    )


def _zeros(layer, batch) -> dict:
    states = ("h", "c") if isinstance(layer, LSTM) else ("h",)
    return {s: np.zeros((1, batch, layer.hidden_size), np.float32) for s in states}


def _onnx(layer, x) -> dict:
    session = _session(layer, *x.shape[:2])
    if session is None:
        return {}
    feed = {"x": x, **_zeros(layer, x.shape[1])}
    return {"onnxruntime": lambda: session.run(["y"], feed)[0][:, 0]}


def onnx_steps(layer, x, *, change: Callable = _same) -> dict:
    """As `steps`; ``change`` is applied to the model."""
    session = _session(layer, 1, x.shape[1], change)
    if session is None:
        return {}
    zero = _zeros(layer, x.shape[1])

    def run():
        state = zero
        for t in range(len(x)):
            y, *after = session.run(None, {"x": x[t : t + 1], **state})
            state = dict(zip(zero, after, strict=True))
        return y[:, 0]

    return {"onnxruntime": run}


def _jax_layer(layer, batch):
    """``y = f(parameters, x)`` by `jax.lax.scan`, and the parameters; None without jax."""
    if not has("jax"):
        return None
    import jax
    import jax.numpy as jnp

    w = [jnp.asarray(v) for v in layer.state_dict().values()]
    h_0 = jnp.zeros((batch, layer.hidden_size), jnp.float32)
    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh

    def lstm(w, state, z):
        h, c = state
        i, f, g, o = jnp.split(z + h @ w[1].T + w[3], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    def gru(w, h, z):
        x_r, x_z, x_n = jnp.split(z, 3, axis=1)
        h_r, h_z, h_n = jnp.split(h @ w[1].T + w[3], 3, axis=1)
        u = sigmoid(x_z + h_z)
        h = (1 - u) * tanh(x_n + sigmoid(x_r + h_r) * h_n) + u * h
        return h, h

    def rnn(w, h, z):
        h = tanh(z + h @ w[1].T + w[3])
        return h, h

    step = lstm if isinstance(layer, LSTM) else gru if isinstance(layer, GRU) else rnn
    state_0 = (h_0, h_0) if isinstance(layer, LSTM) else h_0

    def run(w, x):
        def body(state, z):
            return step(w, state, z)

        return jax.lax.scan(body, state_0, x @ w[0].T + w[2])[1]

    return run, w


def _jax(layer, x) -> dict:
    made = _jax_layer(layer, x.shape[1])
    if made is None:
        return {}
    import jax

    run, x_j = jax.jit(made[0]), jax.numpy.asarray(x)
    return {"jax": lambda: np.asarray(run(made[1], x_j))}


def _jax_training(layer, x, dy) -> dict:
    made = _jax_layer(layer, x.shape[1])
    if made is None:
        return {}
    import jax

    x_j, dy_j = jax.numpy.asarray(x), jax.numpy.asarray(dy)

    @jax.jit
    def both(w, x, dy):
        y, back = jax.vjp(made[0], w, x)
        return y, back(dy)

    return {"jax": lambda: jax.block_until_ready(both(made[1], x_j, dy_j))}


def _keras(layer, x) -> dict:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if not has("keras", os.environ["KERAS_BACKEND"]):
        return {}
    import keras

    name = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"}[type(layer).__name__]
    theirs = getattr(keras.layers, name)(layer.hidden_size, return_sequences=True)
    model = keras.Sequential([theirs])
    first = np.ascontiguousarray(x.swapaxes(0, 1))
    model.build(first.shape)
    w_ih, w_hh, b_ih, b_hh = layer.state_dict().values()
    if name == "GRU":  # gates z, r, n, and two biases
        swap = np.split(np.arange(len(w_ih)), 3)
        order = np.concatenate([swap[1], swap[0], swap[2]])
        theirs.set_weights([w_ih[order].T, w_hh[order].T, np.stack([b_ih[order], b_hh[order]])])
    else:
        theirs.set_weights([w_ih.T, w_hh.T, b_ih + b_hh])
    return {"keras": lambda: np.asarray(model.predict_on_batch(first)).swapaxes(0, 1)}
