"""`accelerate`: replace the recurrent modules of a model, and `restore` them."""

from typing import NamedTuple

import torch
from torch import nn

from .modules import GRU, LSTM, RNN, _Recurrent

_CLASSES: dict[type, type[_Recurrent]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
_ORIGINAL = "_fastrnn_original"


class Report(NamedTuple):
    """The result of `accelerate`."""

    replaced: list[str]  # names of modules
    kept: dict[str, str]  # why a recurrent module was not replaced, by its name

    def __str__(self):
        lines = [f"replaced {name}" for name in self.replaced]
        lines += [f"kept {name}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines) or "no recurrent modules"


def accelerate(model: nn.Module) -> Report:
    """Replace each ``torch.nn.LSTM``, ``GRU`` and ``RNN`` of a model by fastrnn's, in place.

    The new modules share the parameters of the old ones, so optimizers go on as before and the
    state_dict keeps its names. `restore` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        If it is itself a recurrent module, use ``fastrnn.torch.LSTM.of(model)`` instead.

    Returns
    -------
    report : Report
        What was replaced, and what was not and why; ``print`` shows it.

    Raises
    ------
    TypeError
        ``model`` is not a module.
    ValueError
        It is itself a recurrent module, which cannot be replaced in place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if type(model) in _CLASSES:
        name = type(model).__name__
        raise ValueError(
            f"model is a torch.nn.{name} itself: use fastrnn.torch.{name}.of(model), or accelerate "
            f"the module that holds it"
        )
    report = Report([], {})
    made: dict[nn.Module, nn.Module] = {}
    for name, parent, key, child in _children(model):
        if not isinstance(child, nn.RNNBase):
            continue
        why = _obstacle(child)
        if why:
            report.kept[name] = why
            continue
        if child not in made:
            made[child] = _CLASSES[type(child)].of(child)
            vars(made[child])[_ORIGINAL] = child  # not a submodule
        parent._modules[key] = made[child]
        report.replaced.append(name)
    return report


def restore(model: nn.Module) -> list[str]:
    """Undo `accelerate`, with the parameters of now; the names of the modules put back."""
    names = []
    for name, parent, key, child in _children(model):
        original = vars(child).get(_ORIGINAL)
        if original is not None:
            for parameter in child._names():
                setattr(original, parameter, getattr(child, parameter))
            original.train(child.training)
            parent._modules[key] = original
            names.append(name)
    return names


def _children(model: nn.Module):
    """``(name, parent, key, child)`` of all submodules, those in several places each time."""
    parents = list(model.named_modules())
    for prefix, parent in parents:
        for key, child in list(parent._modules.items()):
            if child is not None:
                yield f"{prefix}.{key}" if prefix else key, parent, key, child


def _obstacle(module: nn.RNNBase) -> str:
    """Why a module cannot be replaced, or an empty string."""
    if type(module) not in _CLASSES:
        return f"{type(module).__name__} is a subclass, which may compute something else"
    if any(v for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict)):
        return "it has hooks"
    for parameter in module._flat_weights:
        if not isinstance(parameter, nn.Parameter):
            return "its weights are not parameters"
        if parameter.device.type != "cpu":
            return f"it is on the device {parameter.device}"
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"its dtype is {parameter.dtype}"
    return ""
