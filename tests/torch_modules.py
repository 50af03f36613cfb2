"""What the tests of `fastrnn.torch` share."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn.torch as ours

CLASSES = {nn.LSTM: ours.LSTM, nn.GRU: ours.GRU, nn.RNN: ours.RNN}
TOLERANCE = {
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
}


def theirs_and_mine(cls, *args, **kwargs):
    """Two modules with the same parameters."""
    theirs = cls(*args, **kwargs)
    mine = CLASSES[cls](*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def leaves(value) -> list:
    """The tensors of arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in leaves(part)]
    return []


def fresh(value):
    """The same arguments as new leaves that require a gradient."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_()
    if isinstance(value, PackedSequence):
        return PackedSequence(fresh(value.data), *value[1:])
    return type(value)(fresh(part) for part in value) if isinstance(value, tuple | list) else value


def same(got, wanted):
    got, wanted = leaves(got), leaves(wanted)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[b.dtype])


def compare(theirs, mine, *args):
    """Results, and the gradients of all arguments and parameters."""
    gradients = []
    results = []
    for module in (theirs, mine):
        own = [fresh(a) for a in args]
        module.zero_grad()
        out = module(*own)
        results.append(out)
        torch.manual_seed(0)
        loss = sum((leaf * torch.rand_like(leaf)).sum() for leaf in leaves(out))
        loss.backward()
        gradients.append([leaf.grad for a in own for leaf in leaves(a)])
        gradients[-1] += [p.grad for p in module.parameters()]
    assert type(results[0]) is type(results[1])
    same(results[1], results[0])
    same(gradients[1], gradients[0])
    with torch.no_grad():
        for _ in range(3):  # the third call has a plan
            same(mine(*args), results[0])
