"""`LSTM`, `GRU` and `RNN` with the arguments, parameters and results of PyTorch's."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.kernels.backend import get_backend
from fastrnn.layers.stack import Stack
from fastrnn.packed import PackedBatch

from .autograd import NAMES, Pass, Spec, array, compute, recurrent, stack_of

_SAMPLE = 64  # numbers of each weight that are compared from call to call
# PyTorch's methods and properties that need only the attributes that `_Recurrent._adopt` copies.
_BORROWED = (
    "all_weights", "check_forward_args", "check_hidden_size", "check_input", "extra_repr",
    "get_expected_cell_size", "get_expected_hidden_size", "permute_hidden", "reset_parameters",
)  # fmt: skip


class _Recurrent(nn.Module):
    """What the three share. It stands in for a module of PyTorch's, whose methods it borrows.

    Under autocast to bfloat16 on the CPU, products are in that precision, and results in float32.

    What the kernels do not compute (other devices than that of ``backend``, other types than
    float32 and float64, other kinds of autocast, tensor subclasses, function transforms,
    forward-mode gradients, empty batches, wrong arguments) is passed to PyTorch's own
    implementation, which computes or refuses it. Gradients of gradients and batched ones
    (``is_grads_batched``) are refused.
    """

    _like: type[nn.RNNBase]

    def __init_subclass__(cls):
        for name in _BORROWED:
            if hasattr(cls._like, name):
                setattr(cls, name, getattr(cls._like, name))

    def __init__(self, *args, backend: str = "cpu", **kwargs):
        super().__init__()
        get_backend(backend)
        self.backend = backend
        self._adopt(self._like(*args, **kwargs))

    @classmethod
    def of(cls, module: nn.RNNBase, *, backend: str = "cpu"):
        """A module with the options of PyTorch's ``module``, which shares its parameters.

        ``backend`` is "cpu" or, for tensors in a GPU's memory, "cuda".
        """
        get_backend(backend)
        if type(module) is not cls._like:
            raise TypeError(
                f"module must be a torch.nn.{cls._like.__name__}, got {type(module).__name__}"
            )
        why = obstacle(module, backend)
        if why:
            raise ValueError(f"module cannot be replaced: {why}")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.backend = backend
        new._adopt(module)
        return new

    def _adopt(self, module: nn.RNNBase) -> None:
        for name in module.__constants__:
            setattr(self, name, getattr(module, name))
        if hasattr(module, "nonlinearity"):
            self.nonlinearity = module.nonlinearity
        self._all_weights = module._all_weights
        for name in self._names():
            self.register_parameter(name, getattr(module, name))
        self._shapes = [tuple(p.shape) for p in self._flat_weights]
        self.train(module.training)
        self._packed: tuple[Any, Stack | None] = None, None

    def _names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names()]

    def flatten_parameters(self) -> None:
        """Forget the packed weights, see `_stack`."""
        self._packed = None, None

    def _update_flat_weights(self) -> None:
        """Nothing: the list is made when it is read."""

    def __getstate__(self):
        return self.__dict__ | {"_packed": (None, None)}

    def forward(self, input, hx=None):
        """See ``torch.nn.LSTM``, ``GRU`` and ``RNN``."""
        precision = self._precision()
        if precision == "bf16":
            input, hx = _widened(input), _widened(hx)
        if precision is None or not self._takes(input, hx):
            return _theirs(self, input, hx)
        is_packed = isinstance(input, PackedSequence)
        x, sizes, order, inverse = cast(Any, input if is_packed else (input, None, None, None))
        unbatched = x.dim() == 2 and not is_packed
        if unbatched:
            x = x.unsqueeze(1)
        elif self.batch_first and not is_packed:
            x = x.transpose(0, 1)
        batch = int(sizes[0]) if is_packed else x.shape[1]
        if hx is None:
            states = [x.new_zeros(shape) for shape in self._state_shapes(batch)]
        else:
            states = [hx] if isinstance(hx, Tensor) else list(hx)
            states = [s.unsqueeze(1) if unbatched else _ordered(s, order) for s in states]
        if torch.compiler.is_compiling():
            y, *states = self._operator(x, sizes, states)
        else:
            y, *states = self._eager(x, sizes, states)
        if unbatched:
            y, states = y.squeeze(1), [s.squeeze(1) for s in states]
        elif self.batch_first and not is_packed:
            y = y.transpose(0, 1)
        if is_packed:
            y = PackedSequence(y, sizes, order, inverse)
            states = [_ordered(s, inverse) for s in states]
        return y, (tuple(states) if len(states) == 2 else states[0])

    def _state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        h = (rows, batch, self.proj_size or self.hidden_size)
        return [h, (rows, batch, self.hidden_size)] if self.mode == "LSTM" else [h]

    def _takes(self, input, hx) -> bool:
        """Whether the kernels compute this call."""
        is_packed = isinstance(input, PackedSequence)
        x = input.data if is_packed else input
        if not self._is_plain(x) or x.dim() not in ((2,) if is_packed else (2, 3)):
            return False
        if x.shape[-1] != self.input_size or not x.numel():
            return False
        if not all(
            self._is_plain(w) and w.dtype == x.dtype and tuple(w.shape) == shape
            for w, shape in zip(self._flat_weights, self._shapes, strict=True)
        ):
            return False
        if not torch.compiler.is_compiling() and (
            torch._C._functorch.peek_interpreter_stack() is not None
            or torch.autograd.forward_ad._current_level >= 0
            or torch.jit.is_tracing()
        ):
            return False
        if hx is None:
            return True
        unbatched = x.dim() == 2 and not is_packed
        batch = int(input.batch_sizes[0]) if is_packed else x.shape[0 if self.batch_first else 1]
        shapes = self._state_shapes(1 if unbatched else batch)
        if self.mode == "LSTM":
            if not isinstance(hx, tuple | list) or len(hx) != 2:
                return False
        else:
            hx = (hx,)
        return all(
            self._is_plain(s)
            and s.dtype == x.dtype
            and tuple(s.unsqueeze(1).shape if unbatched else s.shape) == shape
            for s, shape in zip(hx, shapes, strict=True)
        )

    def _is_plain(self, x) -> bool:
        return (
            type(x) in (Tensor, nn.Parameter)
            and x.device.type == self.backend
            and x.layout == torch.strided
            and x.dtype in (torch.float32, torch.float64)
        )

    def _precision(self) -> str | None:
        """What products are computed in under the current autocast; None: by PyTorch."""
        if not torch.is_autocast_enabled(self.backend):
            return "float32"
        is_bf16 = torch.get_autocast_dtype(self.backend) == torch.bfloat16
        is_single = self._flat_weights[0].dtype == torch.float32
        return "bf16" if self.backend == "cpu" and is_bf16 and is_single else None

    def _spec(self) -> Spec:
        names = NAMES[:4] if self.bias else NAMES[:2]
        cell = "lstm_projected" if self.proj_size else self.mode.lower()
        directions = 2 if self.bidirectional else 1
        return Spec(
            self.backend, cell, directions, self.dropout,
            names + NAMES[4:] * bool(self.proj_size), self._precision() or "float32",
        )  # fmt: skip

    def _eager(self, x: Tensor, sizes: Tensor | None, states: list[Tensor]):
        weights = self._flat_weights
        record = torch.is_grad_enabled() and any(
            t.requires_grad for group in ((x,), states, weights) for t in group
        )
        spec = self._spec()
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        stack = self._stack(spec, weights, keep=not (record or capturing))
        keys: list[int | None] = []
        if self.training and self.dropout and self.num_layers > 1:
            keys = [None, *torch.randint(2**62, (self.num_layers - 1,)).tolist()]
        if sizes is None:
            if not (record or keys or stack.kernels.on_device) and x.is_contiguous():
                done = stack.planned(array(x), _as_state(states), False, _dense_size)
                if done is not None:
                    y, state = done
                    state = state if isinstance(state, tuple) else (state,)
                    return torch.from_numpy(y), *map(torch.from_numpy, state)
            packed = PackedBatch(*x.shape[:2])
        else:
            packed = PackedBatch.of_sizes(array(sizes))
        if record:
            return Pass.apply(stack, packed, keys, spec.names, len(states), x, *states, *weights)
        y, states, _ = compute(stack, packed, keys, x, states, training=False)
        return y, *states

    def _operator(self, x: Tensor, sizes: Tensor | None, states: list[Tensor]):
        keys = torch.full((self.num_layers,), -1)
        if self.training and self.dropout:
            keys[1:] = torch.randint(2**62, (self.num_layers - 1,))
        return recurrent(x, sizes, states, self._flat_weights, keys, self._spec().text())

    def _stack(self, spec: Spec, weights: list[Tensor], *, keep: bool) -> Stack:
        """The packed weights; if they are to be kept, made again only when they have changed.

        PyTorch counts changes in place, but not those through ``.data`` or in inference mode: a
        sample of the numbers is compared as well. After such a change of few numbers call
        `flatten_parameters`. For training, which usually changes the weights at each step, they are
        always made again.
        """
        if not keep:
            return stack_of(spec, weights)
        versions = [0 if w.is_inference() else w._version for w in weights]
        key = [
            spec.precision,
            *((w.data_ptr(), v, _sample(w)) for w, v in zip(weights, versions, strict=True)),
        ]
        known, stack = self._packed
        if stack is None or known != key:
            stack = stack_of(spec, weights)
            self._packed = key, stack
        return stack


def _widened(value):
    """Tensors in bfloat16 as float32."""
    if isinstance(value, PackedSequence):
        return value._replace(data=_widened(value.data))
    if isinstance(value, tuple | list):
        return type(value)(map(_widened, value))
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    return value


def _ordered(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)


def _sample(w: Tensor) -> bytes:
    flat = w.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].numpy(force=True).tobytes()


def _as_state(states: list[Tensor]):
    arrays = tuple(map(array, states))
    return arrays if len(arrays) > 1 else arrays[0]


def _dense_size(shape: tuple[int, ...], _: bool) -> tuple[int, int]:
    return shape[0], shape[1]


# torch.compile must not look inside: it would trace what PyTorch's module does not let it trace.
@torch.compiler.disable
def _theirs(module: _Recurrent, input, hx):
    return module._like.forward(cast(Any, module), input, hx)


def obstacle(module: nn.RNNBase, backend: str) -> str:
    """Why a module of PyTorch cannot be replaced, or an empty string."""
    if type(module) not in (nn.LSTM, nn.GRU, nn.RNN):
        return f"{type(module).__name__} is a subclass, which may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    if any(v for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict)):
        return "it has hooks"
    for parameter in module._flat_weights:
        if not isinstance(parameter, nn.Parameter):
            return "its weights are not parameters"
        if parameter.device.type not in (backend, "meta"):
            return f"it is on the device {parameter.device}"
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"its dtype is {parameter.dtype}"
    return ""


class LSTM(_Recurrent):
    """``torch.nn.LSTM`` on fastrnn's kernels, with the same arguments and results.

    ``backend="cuda"`` computes tensors in a GPU's memory; otherwise PyTorch does.
    Projections (``proj_size``) run step by step, as in PyTorch.
    """

    _like = nn.LSTM


class GRU(_Recurrent):
    """``torch.nn.GRU`` on fastrnn's kernels, with the same arguments and results."""

    _like = nn.GRU


class RNN(_Recurrent):
    """``torch.nn.RNN`` on fastrnn's kernels, with the same arguments and results."""

    _like = nn.RNN


def state_dict(layer: Any) -> dict[str, Tensor]:
    """The parameters of a layer or model of fastrnn as tensors, for ``load_state_dict`` of
    PyTorch's module; the inverse is `fastrnn.from_torch`."""
    return {name: torch.from_numpy(value) for name, value in layer.parameters.state_dict().items()}
