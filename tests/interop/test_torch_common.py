"""`fastrnn.torch` on the inputs that PyTorch tests its own modules with.

The package of PyTorch has the inputs but not the tests; those here are named after them. Not among
them: test_gradgrad (gradients of gradients are refused), test_memory_format (for images),
test_check_inplace (there is no such option), and test_multiple_device_transfer and
test_cpu_gpu_parity, which need a GPU.
"""

import itertools
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("expecttest", reason="expecttest, which PyTorch's tests need, is not installed")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence  # noqa: E402

from torch_modules import CLASSES, compare, same, theirs_and_mine  # noqa: E402


def info_of(cls):
    """PyTorch's inputs for its tests of a module."""
    from torch.testing._internal.common_modules import module_db  # takes seconds

    return next(info for info in module_db if info.module_cls is cls)


def inputs_of(cls, dtype, training):
    info = info_of(cls)
    options = {"with_packed_sequence": True} if cls is not nn.LSTM else {}
    return info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=training, **options
    )


CASES = list(itertools.product(CLASSES, (torch.float32, torch.float64), (False, True)))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("cls", "dtype", "training"), CASES)
def test_pytorchs_inputs(cls, dtype, training):
    """test_forward, test_grad, test_non_contiguous_tensors, test_pickle, test_repr."""
    count = 0
    for sample in inputs_of(cls, dtype, training):
        made, given = sample.constructor_input, sample.forward_input
        theirs, mine = theirs_and_mine(cls, *made.args, **made.kwargs, dtype=dtype)
        theirs.train(training), mine.train(training)
        compare(theirs, mine, *given.args)
        if sample.reference_fn is not None and not isinstance(given.args[0], PackedSequence):
            wanted = sample.reference_fn(mine, *given.args)
            same(mine(*given.args), wanted)
        apart = [a.repeat_interleave(2, -1)[..., ::2] if isinstance(a, torch.Tensor) else a
                 for a in given.args]  # fmt: skip
        same(mine(*apart), theirs(*given.args))
        same(pickle.loads(pickle.dumps(mine))(*given.args), theirs(*given.args))
        assert repr(mine) == repr(theirs)
        count += 1
    assert count >= 16


@pytest.mark.parametrize("cls", CLASSES)
def test_pytorchs_errors(cls):
    """test_errors: what PyTorch refuses is refused with its message."""
    info = info_of(cls)
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    for sample in samples:
        made = sample.module_error_input.constructor_input
        given = sample.module_error_input.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module = CLASSES[cls](*made.args, **made.kwargs)
            module(*given.args, **given.kwargs)
    assert len(samples) > 5


@pytest.mark.parametrize("cls", CLASSES)
def test_factories(cls):
    """test_factory_kwargs, test_to_empty: types, devices, and initial weights of a seed."""
    for dtype in (torch.float32, torch.float64):
        assert {p.dtype for p in CLASSES[cls](3, 4, dtype=dtype).parameters()} == {dtype}
    meta = CLASSES[cls](3, 4, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    module = meta.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)
    torch.manual_seed(3)
    theirs = cls(3, 4)
    torch.manual_seed(3)
    mine = CLASSES[cls](3, 4)
    for a, b in zip(theirs.parameters(), mine.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cls", CLASSES)
def test_train_and_eval_differ(cls):
    """test_if_train_and_eval_modes_differ."""
    module, x = CLASSES[cls](3, 64, 2, dropout=0.5), torch.ones(5, 2, 3)
    assert not torch.equal(module(x)[0], module.eval()(x)[0])
    assert torch.equal(module(x)[0], module(x)[0])
