"""`accelerate` and torch.compile on models written in plain PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as ours  # noqa: E402


class Tagger(nn.Module):
    """A BiLSTM tagger as one finds it."""

    def __init__(self, words=50, tags=5):
        super().__init__()
        self.embedding = nn.Embedding(words, 20)
        self.lstm = nn.LSTM(20, 24, 2, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(48, tags)

    def forward(self, ids, lengths):
        x = pack_padded_sequence(
            self.embedding(ids), lengths, batch_first=True, enforce_sorted=False
        )
        y, _ = pad_packed_sequence(self.lstm(x)[0], batch_first=True)
        return self.linear(y)


class LanguageModel(nn.Module):
    """A character model that carries its state."""

    def __init__(self, symbols=30):
        super().__init__()
        self.embedding = nn.Embedding(symbols, 16)
        self.rnn = nn.GRU(16, 40, 2)
        self.linear = nn.Linear(40, symbols)

    def forward(self, ids, state=None):
        y, state = self.rnn(self.embedding(ids), state)
        return self.linear(y), state


def train_tagger(model, steps=50):
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(steps):
        lengths = torch.from_numpy(rng.integers(1, 12, 8))
        ids = torch.from_numpy(rng.integers(0, 50, (8, int(lengths.max()))))
        scores = model(ids, lengths)
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        loss = nn.functional.cross_entropy(scores[inside], ids[inside] % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_language_model(model, steps=50):
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses, state = [], None
    for _ in range(steps):
        ids = torch.from_numpy(rng.integers(0, 5, (11, 4)).cumsum(0) % 30)
        scores, state = model(ids[:-1], state)
        state = state.detach()
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), ids[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("make", "train"), [(Tagger, train_tagger),
                                             (LanguageModel, train_language_model)])  # fmt: skip
def test_accelerated_training_gives_the_same_losses(make, train):
    losses = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = make()
        if accelerated:
            assert len(ours.accelerate(model).replaced) == 1
        losses.append(train(model))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.3


def test_accelerate_and_restore():
    class Mine(nn.LSTM):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Embedding(3, 4), nn.LSTM(4, 5))
            self.b = nn.ModuleDict({"gru": nn.GRU(4, 5), "low": nn.GRU(4, 5).bfloat16()})
            self.shared = self.a[1]
            self.mine = Mine(4, 5)
            self.normed = nn.utils.parametrizations.weight_norm(nn.LSTM(4, 5), "weight_hh_l0")
            self.hooked = nn.RNN(4, 5)
            self.hooked.register_forward_hook(lambda *_: None)
            self.cell = nn.LSTMCell(4, 5)
            self.rnn = nn.RNN(4, 5, nonlinearity="relu")

    model = Model().eval()
    state, original = model.state_dict(), model.a[1]
    report = ours.accelerate(model)
    assert report.replaced == ["a.1", "b.gru", "shared", "rnn"] or sorted(report.replaced) == [
        "a.1", "b.gru", "rnn", "shared"
    ]  # fmt: skip
    assert report.kept.keys() == {"b.low", "mine", "normed", "hooked"}
    assert "bfloat16" in report.kept["b.low"] and "subclass" in report.kept["mine"]
    assert "kept hooked: it has hooks" in str(report) and "replaced b.gru" in str(report)
    assert isinstance(model.a[1], ours.LSTM) and model.shared is model.a[1]
    assert not model.a[1].training
    assert model.state_dict().keys() == state.keys()
    assert model.rnn.nonlinearity == "relu"
    with torch.no_grad():
        model.a[1].weight_ih_l0.zero_()
    assert sorted(ours.restore(model)) == sorted(report.replaced)
    assert model.a[1] is original and original.weight_ih_l0.abs().sum() == 0
    assert str(ours.accelerate(nn.Linear(2, 2))) == "no recurrent modules"


def test_modules_that_were_changed():
    model = nn.ModuleDict({"a": nn.LSTM(4, 5), "b": nn.GRU(4, 5), "c": nn.RNN(4, 5)})
    model["c"].forward = lambda x: x
    assert ours.accelerate(model).kept == {"c": "its forward was replaced"}
    nn.utils.parametrizations.weight_norm(model["b"], "weight_hh_l0")
    with pytest.raises(ValueError, match="b: remove what makes its weights no parameters first"):
        ours.restore(model)
    assert isinstance(model["a"], ours.LSTM)
    hooked = nn.LSTM(4, 5)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="module cannot be replaced: it has hooks"):
        ours.LSTM.of(hooked)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"use fastrnn\.torch\.LSTM\.of\(model\)"):
        ours.accelerate(nn.LSTM(2, 3))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        ours.accelerate({})


@pytest.mark.parametrize("cls", [ours.LSTM, ours.GRU, ours.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compile(cls, bidirectional):
    """One graph, with the results and gradients of eager mode."""
    module = cls(5, 8, 2, bidirectional=bidirectional, batch_first=True)

    def run(x):
        y, state = module(x * 2)
        return y.tanh(), state

    x = torch.randn(3, 7, 5)
    wanted, _ = run(x)
    wanted.square().sum().backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    got, _ = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, wanted)
    got.square().sum().backward()
    for p, g in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-5)


def test_compiled_calls_that_go_to_pytorch():
    module = ours.LSTM(5, 16)
    compiled = torch.compile(lambda x: module(x), backend="aot_eager")
    assert compiled(torch.zeros(3, 0, 5))[0].shape == (3, 0, 16)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_autocast(rng, kind):
    """Closer to float32 than PyTorch's own, in value and gradients; packed and compiled too."""
    theirs = getattr(torch.nn, kind)(24, 40, 2, bidirectional=True)
    mine = getattr(ours, kind).of(theirs)
    x = torch.from_numpy(rng.standard_normal((9, 5, 24), np.float32)).requires_grad_()
    dy = torch.from_numpy(rng.standard_normal((9, 5, 80), np.float32))

    def results(module, cast):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = module(x)[0]
        return [y.float(), *torch.autograd.grad(y, [x, *theirs.parameters()], dy.to(y.dtype))]

    exact, got, other = results(theirs, False), results(mine, True), results(theirs, True)
    for right, a, b in zip(exact, got, other, strict=True):
        error, theirs_error = ((v - right).norm() / right.norm() for v in (a, b))
        assert 1e-5 < error < max(1.5 * theirs_error, 4e-3)
    assert not torch.equal(got[0], results(mine, False)[0])
    compiled = torch.compile(lambda x: mine(x)[0], backend="aot_eager")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.bfloat16(), [9, 9, 4, 4, 1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = mine(x)[0]
        assert y.dtype == torch.float32 and torch.equal(y, got[0])
        assert torch.equal(compiled(x), y)
        rows = torch.nn.utils.rnn.pad_packed_sequence(mine(packed)[0])[0]
    assert torch.equal(rows[:, :2, :40], y[:, :2, :40])


def test_operator():
    """torch.library's own checks: schema, fake kernel, autograd registration."""
    from fastrnn.torch.autograd import recurrent

    module = ours.LSTM(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    states = [torch.zeros(2, 2, 4) for _ in range(2)]
    spec = module._spec().text()
    args = (x, None, states, module._flat_weights, torch.tensor([-1]), spec)
    torch.library.opcheck(recurrent, args)
