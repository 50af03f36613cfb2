"""The modules of `fastrnn.torch` against PyTorch's."""

import contextlib
import copy
import io
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as ours  # noqa: E402
from torch_modules import CLASSES, compare, leaves, same, theirs_and_mine  # noqa: E402


def sequences(rng, sizes, width, dtype):
    return [torch.from_numpy(rng.standard_normal((n, width))).to(dtype) for n in sizes]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("number", range(60))
def test_random_options(number):
    rng = np.random.default_rng(number)
    cls = list(CLASSES)[number % 3]
    dtype = (torch.float32, torch.float64)[number // 3 % 2]
    width, units, layers = (int(n) for n in rng.integers([1, 3, 1], [9, 40, 4]))
    options = {
        "num_layers": layers, "bias": bool(rng.random() < 0.8),
        "batch_first": bool(rng.random() < 0.5), "bidirectional": bool(rng.random() < 0.5),
        "dtype": dtype,
    }  # fmt: skip
    if cls is nn.LSTM and rng.random() < 0.3:
        options["proj_size"] = int(rng.integers(1, units))
    if cls is nn.RNN:
        options["nonlinearity"] = str(rng.choice(["tanh", "relu"]))
    theirs, mine = theirs_and_mine(cls, width, units, **options)
    batch, steps = int(rng.integers(1, 12)), int(rng.integers(1, 20))
    kind = rng.choice(["padded", "unbatched", "sorted", "unsorted", "transposed"])
    unbatched = kind == "unbatched"
    if kind == "padded" or unbatched:
        shape = (batch, steps, width) if options["batch_first"] else (steps, batch, width)
        x = torch.from_numpy(rng.standard_normal(shape[1:] if unbatched else shape)).to(dtype)
    elif kind == "transposed":
        shape = (steps, batch, width) if options["batch_first"] else (batch, steps, width)
        x = torch.from_numpy(rng.standard_normal(shape)).to(dtype).transpose(0, 1)
    else:
        sizes = rng.integers(1, 20, batch)
        if kind == "sorted":
            sizes = np.sort(sizes)[::-1]
        x = pack_sequence(sequences(rng, sizes, width, dtype), enforce_sorted=kind == "sorted")
    if rng.random() < 0.5:
        compare(theirs, mine, x)
        return
    rows = layers * (2 if options["bidirectional"] else 1)
    out = options.get("proj_size") or units
    states = [torch.from_numpy(rng.standard_normal((rows, *((batch,) * (not unbatched)), n)))
              .to(dtype) for n in (out, units)]  # fmt: skip
    compare(theirs, mine, x, tuple(states) if cls is nn.LSTM else states[0])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_gradcheck(cls, kind, rng):
    module = CLASSES[cls](3, 5, 2, bidirectional=True, dtype=torch.float64)
    parts = sequences(rng, [4, 2, 1], 3, torch.float64)
    packed = pack_sequence(parts)
    data = packed.data if kind == "packed" else torch.stack([p[:1] for p in parts], 1)

    def run(data, *parameters):
        x = PackedSequence(data, *packed[1:]) if kind == "packed" else data
        return tuple(
            leaves(
                torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
            )
        )

    names = [name for name, _ in module.named_parameters()]
    inputs = [data.clone().requires_grad_(), *module.parameters()]
    assert torch.autograd.gradcheck(run, inputs)


# What one does with modules.


def test_training_is_the_same_as_pytorchs(rng):
    """Optimizers, clipping, freezing: 20 steps."""
    x = torch.from_numpy(rng.standard_normal((7, 4, 6), np.float32))
    losses = []
    theirs, mine = theirs_and_mine(nn.LSTM, 6, 33, 2, bidirectional=True)
    for module in (theirs, mine):
        module.weight_hh_l1.requires_grad_(False)
        optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), 0.01)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = (module(x)[0] - 0.3).square().mean()
            loss.backward()
            assert module.weight_hh_l1.grad is None
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_gradients_have_memory_of_their_own(rng):
    module = ours.LSTM(5, 16)
    module(torch.zeros(3, 2, 5))[0].sum().backward()
    pointers = [p.grad.data_ptr() for p in module.parameters()]
    assert len(set(pointers)) == len(pointers)
    before = module.bias_hh_l0.grad.clone()
    module.bias_ih_l0.grad.mul_(2)
    assert torch.equal(module.bias_hh_l0.grad, before)


def change_in_place(module):
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.5)


def change_data(module):
    module.weight_hh_l0.data.mul_(0.5)


def replace_data(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data * 0.5


def replace_parameter(module):
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 0.5)


def change_one_number(module):
    module.weight_hh_l0.data[1, 2] += 1
    module.flatten_parameters()


def load(module):
    state = module.state_dict()
    module.load_state_dict(state | {"weight_hh_l0": state["weight_hh_l0"] * 0.5})


def assign(module):
    state = module.state_dict()
    module.load_state_dict(state | {"weight_hh_l0": state["weight_hh_l0"] * 0.5}, assign=True)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_data,
        change_one_number,
        replace_data,
        replace_parameter,
        load,
        assign,
    ],
)
def test_changed_weights_are_noticed(change, rng):
    theirs, mine = theirs_and_mine(nn.LSTM, 5, 16)
    x = torch.from_numpy(rng.standard_normal((3, 2, 5), np.float32))
    with torch.no_grad():
        for _ in range(3):
            before = mine(x)[0]
        change(theirs), change(mine)
        assert not torch.equal(mine(x)[0], before)
        same(mine(x), theirs(x))
    same(mine(x), theirs(x))


def test_other_types(rng):
    theirs, mine = theirs_and_mine(nn.GRU, 5, 16)
    x = torch.from_numpy(rng.standard_normal((3, 2, 5)))
    same(mine.to(torch.float64)(x), theirs.to(torch.float64)(x))
    low = x.bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(
            mine.to(torch.bfloat16)(low)[0], theirs.to(torch.bfloat16)(low)[0]
        )
        mine.float(), theirs.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert mine(x.float())[0].dtype == theirs(x.float())[0].dtype


def test_copies_and_files(rng):
    module = ours.LSTM(5, 16, 2, batch_first=True)
    x = torch.from_numpy(rng.standard_normal((3, 2, 5), np.float32))
    wanted = module(x)
    twin = copy.deepcopy(module)
    same(twin(x), wanted)
    change_in_place(twin)
    same(module(x), wanted)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    same(torch.load(file, weights_only=False)(x), wanted)
    back = nn.LSTM(5, 16, 2, batch_first=True)
    back.load_state_dict(module.state_dict())
    same(wanted, back(x))


def test_backward_again(rng):
    module = ours.GRU(5, 16)
    x = torch.from_numpy(rng.standard_normal((3, 2, 5), np.float32)).requires_grad_()
    loss = module(x)[0].square().sum()
    once = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], once)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_checkpoints_keep_nothing(rng):
    """The gradients of activation checkpointing, and the memory that is kept for them."""
    from torch.utils.checkpoint import checkpoint

    module = ours.LSTM(5, 16)
    x = torch.from_numpy(rng.standard_normal((3, 2, 5), np.float32)).requires_grad_()
    (wanted,) = torch.autograd.grad(module(x)[0].square().sum(), x)
    y = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert y.grad_fn.tape is None
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], wanted)


def test_weights_of_other_shapes_go_to_pytorch():
    module = ours.GRU(5, 16)
    module.weight_ih_l0 = nn.Parameter(torch.zeros(48, 7))
    with pytest.raises(RuntimeError):
        module(torch.zeros(3, 2, 5))
    module.weight_ih_l0 = nn.Parameter(torch.zeros(48, 5))
    module.bias_hh_l0 = None
    with pytest.raises((RuntimeError, TypeError)):
        module(torch.zeros(3, 2, 5))


@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 4), (3, 2, 2, 5)])
def test_inputs_of_other_shapes_get_the_errors_of_pytorch(shape):
    errors = []
    for module in (nn.LSTM(5, 16), ours.LSTM(5, 16)):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            module(torch.zeros(shape))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside PyTorch
def test_forward_mode_gradients_go_to_pytorch(rng):
    import torch.autograd.forward_ad as forward

    theirs, mine = theirs_and_mine(nn.GRU, 5, 16)
    x, direction = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    tangents = []
    for module in (theirs, mine):
        with torch.no_grad(), forward.dual_level():
            y = module(forward.make_dual(x, direction))[0]
            tangents.append(forward.unpack_dual(y).tangent)
    same(tangents[1], tangents[0])


def test_double_backward_is_refused(rng):
    module = ours.GRU(5, 16)
    x = torch.zeros(3, 2, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


@pytest.mark.parametrize("which", ["x", "weight"])
def test_a_change_between_forward_and_backward_is_refused(which):
    module = ours.LSTM(5, 16)
    x = torch.zeros(3, 2, 5)
    y = module(x)[0]
    with torch.no_grad():
        (x if which == "x" else module.weight_ih_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_dropout(rng):
    module = ours.LSTM(5, 64, 2, dropout=0.5)
    x = torch.from_numpy(rng.standard_normal((9, 8, 5), np.float32))

    def run(seed):
        torch.manual_seed(seed)
        return module(x)[0]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    wanted = run(1)
    with torch.no_grad():
        assert torch.equal(run(1), wanted)
    module.eval()
    assert torch.equal(run(1), run(2))
    # Its gradient, by finite differences along a direction.
    module.double().train()
    x = x.double().requires_grad_()
    direction = torch.randn_like(x)
    (dx,) = torch.autograd.grad(run(3).square().sum(), x)
    values = []
    for sign in (1, -1):
        torch.manual_seed(3)
        values.append(module(x.detach() + sign * 1e-6 * direction)[0].square().sum().item())
    slope = (values[0] - values[1]) / 2e-6
    assert slope == pytest.approx((dx * direction).sum().item(), rel=1e-5)


def test_memory_is_shared(rng, monkeypatch):
    """No copy of a packed sequence on the way in, and none of y on the way out."""
    from fastrnn.torch import autograd

    seen = []
    inner = autograd.Stack.forward
    monkeypatch.setattr(
        autograd.Stack,
        "forward",
        lambda self, x, *a, **k: seen.append(x) or inner(self, x, *a, **k),
    )
    packed = pack_sequence(sequences(rng, [4, 2, 1], 5, torch.float32))
    y, _ = ours.LSTM(5, 16)(packed)
    assert seen[0].ctypes.data == packed.data.data_ptr()
    padded, lengths = pad_packed_sequence(y)
    assert padded.shape == (4, 3, 16) and lengths.tolist() == [4, 2, 1]


@pytest.mark.cuda
@pytest.mark.parametrize("cls", CLASSES)
def test_the_cuda_backend_in_simulation(cls, monkeypatch, rng):
    """The way through autograd; only the memory of tensors is exchanged, as there is no GPU."""
    from fastrnn.kernels import cuda

    monkeypatch.setattr(cuda, "device_view", lambda t, _: cuda.to_device(t.numpy(force=True)))
    monkeypatch.setattr(cuda, "to_caller", lambda _, a: torch.from_numpy(a.copy_to_host()))
    monkeypatch.setattr(cuda, "stream_of", lambda _: contextlib.nullcontext())
    theirs = cls(3, 5, 2, bidirectional=True, batch_first=True)
    mine = CLASSES[cls](3, 5, 2, bidirectional=True, batch_first=True, backend="cuda")
    mine.load_state_dict(theirs.state_dict())
    monkeypatch.setattr(mine, "_is_plain", lambda x: isinstance(x, torch.Tensor))
    compare(theirs, mine, torch.randn(2, 4, 3))
    compare(theirs, mine, pack_sequence(sequences(rng, [4, 2, 1], 3, torch.float32)))


def test_of():
    theirs = nn.LSTM(5, 16, 2, batch_first=True, bidirectional=True).eval()
    mine = ours.LSTM.of(theirs)
    assert mine.weight_ih_l0 is theirs.weight_ih_l0 and not mine.training
    with pytest.raises(TypeError, match=re.escape("module must be a torch.nn.GRU, got LSTM")):
        ours.GRU.of(theirs)


@pytest.mark.parametrize("cls", CLASSES)
def test_vmap_and_meta_go_to_pytorch(cls, rng):
    theirs, mine = theirs_and_mine(cls, 3, 4, device="meta")
    x = torch.zeros(5, 2, 3, device="meta")
    assert mine(x)[0].shape == theirs(x)[0].shape and mine(x)[0].is_meta


def test_replicas(tmp_path, rng):
    """DistributedDataParallel, of one process."""
    import torch.distributed as dist

    if not dist.is_available():
        pytest.skip("torch.distributed is not available")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        theirs, mine = theirs_and_mine(nn.LSTM, 5, 16)
        x = torch.from_numpy(rng.standard_normal((3, 2, 5), np.float32))
        for module in (theirs, mine):
            nn.parallel.DistributedDataParallel(module)(x)[0].sum().backward()
        same([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])
    finally:
        dist.destroy_process_group()
