"""`fastrnn.keras` against Keras: 100 random layers, files, masks."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("torch", reason="PyTorch, the backend of Keras here, is not installed")
from keras import layers  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.keras as ours  # noqa: E402

# NumPy warns about how Keras's variables become arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't")
CLASSES = (layers.LSTM, layers.GRU, layers.SimpleRNN)


def numbers(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def random_layer(seed: int):
    """A layer of Keras with random options and weights, and an input."""
    rng = np.random.default_rng(seed)
    cls = CLASSES[seed % 3]
    width, units = (int(n) for n in rng.integers(1, [7, 12]))
    options = {"use_bias": bool(rng.random() < 0.8), "return_sequences": True}
    if cls is layers.GRU:
        options["reset_after"] = bool(rng.random() < 0.5)
    if rng.random() < 0.2:
        options["activation"] = str(rng.choice(["relu", "softsign"]))
        if cls is not layers.SimpleRNN:
            options["recurrent_activation"] = "hard_sigmoid"
    layer = cls(units, name=f"layer{seed}", **options)
    if rng.random() < 0.5:
        layer = layers.Bidirectional(layer, name=f"both{seed}")
    x = rng.standard_normal((3, 5, width), np.float32)
    layer.build(x.shape)
    layer.set_weights([rng.uniform(-0.5, 0.5, w.shape) for w in layer.get_weights()])
    return layer, x


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_layers(first):
    """Both ways."""
    for seed in range(first, first + 20):
        layer, x = random_layer(seed)
        mine, wanted = ours.from_keras(layer), numbers(layer(x))
        np.testing.assert_allclose(mine(x)[0], wanted, atol=2e-5, err_msg=f"seed {seed}")
        zero = [np.zeros_like(w) for w in layer.get_weights()]
        layer.set_weights(zero)
        ours.set_weights(layer, mine)
        np.testing.assert_allclose(numbers(layer(x)), wanted, atol=2e-5, err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", sorted(ours._ACTIVATIONS))
def test_every_activation(name, rng):
    layer = layers.SimpleRNN(5, activation=name, return_sequences=True)
    x = rng.standard_normal((3, 5, 4), np.float32)
    layer.build(x.shape)
    layer.set_weights([rng.uniform(-0.5, 0.5, w.shape) for w in layer.get_weights()])
    np.testing.assert_allclose(ours.from_keras(layer)(x)[0], numbers(layer(x)), atol=2e-5)


def model():
    x = keras.Input((None, 4))
    y = layers.Bidirectional(layers.LSTM(5, return_sequences=True, name="a"), name="both")(x)
    y = layers.Dense(6, name="dense")(y)
    y = layers.GRU(3, name="gru", return_sequences=True)(y)
    return keras.Model(x, layers.SimpleRNN(2, name="rnn")(y))


def test_files(tmp_path, rng):
    whole = model()
    whole.save(tmp_path / "model.keras")
    whole.save_weights(tmp_path / "model.weights.h5")
    x = rng.standard_normal((3, 5, 4), np.float32)
    first = keras.Model(whole.input, whole.get_layer("both").output)
    wanted = numbers(first(x))
    by_file = [ours.from_keras(source) for source in
               (whole, tmp_path / "model.keras", str(tmp_path / "model.weights.h5"))]  # fmt: skip
    for found in by_file:
        assert [type(v).__name__ for v in found.values()] == ["LSTM", "GRU", "RNN"]
        lstm = next(iter(found.values()))
        np.testing.assert_allclose(lstm(x)[0], wanted, atol=2e-5)
    assert list(by_file[0]) == ["both", "gru", "rnn"]


def test_masks(rng):
    layer, x = random_layer(0)
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    mine = ours.from_keras(layer)
    lengths = ours.lengths_of(mask)
    assert lengths.tolist() == [2, 5, 1]
    y, _ = mine(x, lengths=lengths)
    theirs = numbers(layer(x, mask=mask))
    np.testing.assert_allclose(y[mask], theirs[mask], atol=2e-5)
    gaps = np.array([[0, 1, 0, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    with pytest.raises(ValueError, match="mask: sequence 0 has a masked step before others"):
        ours.lengths_of(gaps)
    short, lengths = ours.compress(x, gaps)
    y, _ = mine(short, lengths=lengths)
    theirs = numbers(layer(x, mask=gaps))
    assert lengths.tolist() == [3, 2, 0]
    for b in range(2):
        np.testing.assert_allclose(y[b, : lengths[b]], theirs[b, gaps[b]], atol=2e-5)


def test_what_is_refused(tmp_path):
    def refused(layer, message, error=ValueError):
        layer.build((1, 2, 3))
        with pytest.raises(error, match=re.escape(message)):
            ours.from_keras(layer)

    refused(layers.LSTM(2, go_backwards=True), "go_backwards is not supported")
    refused(layers.LSTM(2, activation="swish"), "activation must be one of sigmoid, tanh")
    refused(layers.Bidirectional(layers.GRU(2), merge_mode="sum"), "merge_mode must be 'concat'")
    refused(
        layers.LSTM(2, activation=layers.LeakyReLU(0.1)), "activation must be one of sigmoid, tanh"
    )
    backward = layers.LSTM(2, activation="relu", go_backwards=True)
    refused(
        layers.Bidirectional(layers.LSTM(2), backward_layer=backward),
        "both directions must be the same, got LSTM and LSTM, different in ['activation']",
    )
    refused(layers.Dense(2), "source must be a model or a recurrent layer, got Dense")
    with pytest.raises(ValueError, match="has no weights yet"):
        ours.from_keras(layers.LSTM(2))
    with pytest.raises(ValueError, match="has no recurrent layer"):
        ours.from_keras(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.keras"):
        ours.from_keras("nowhere.keras")
    for name in ("bad.keras", "bad.weights.h5"):
        (tmp_path / name).write_bytes(b"no")
        with pytest.raises(ValueError, match=f"Keras cannot load .*{name}|{name} is damaged"):
            ours.from_keras(tmp_path / name)
    with pytest.raises(ValueError, match="source must be a model or a recurrent layer, got LSTM"):
        ours.from_keras(fastrnn.LSTM(3, 4))
    import h5py

    with h5py.File(tmp_path / "half.weights.h5", "w") as file:
        for k, shape in enumerate([(3, 8), (2, 8)]):
            file[f"layers/both/forward_layer/cell/vars/{k}"] = np.zeros(shape)
    with pytest.raises(ValueError, match="layers/both has no backward_layer"):
        ours.from_keras(tmp_path / "half.weights.h5")
    layer, _ = random_layer(0)
    with pytest.raises(ValueError, match="layer must be"):
        ours.set_weights(layer, fastrnn.GRU(3, 4))
    with pytest.raises(ValueError, match=re.escape("mask must be bool [B, T], got int64 (2, 2)")):
        ours.lengths_of(np.ones((2, 2), int))


def test_without_keras(tmp_path):
    (tmp_path / "keras.py").write_text("raise ImportError('no keras')")
    (tmp_path / "m.keras").write_bytes(b"")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fastrnn.keras; "
        "fastrnn.keras.from_keras(sys.argv[1] + '/m.keras')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        'fastrnn.keras needs Keras (extra [keras]): pip install "keras>=3.8" "h5py>=3.10"'
        in done.stderr
    )
