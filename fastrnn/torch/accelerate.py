"""`accelerate`: replace the recurrent modules of a model, and `restore` them."""

from typing import NamedTuple

from torch import nn

from .modules import GRU, LSTM, RNN, _Recurrent, obstacle

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


def accelerate(model: nn.Module, *, backend: str = "cpu") -> Report:
    """Replace each ``torch.nn.LSTM``, ``GRU`` and ``RNN`` of a model by fastrnn's, in place.

    The new modules share the parameters of the old ones, so optimizers go on as before and the
    state_dict keeps its names. They are no ``torch.nn.LSTM`` (``isinstance`` is false), and
    ``torch.jit.script`` and ``torch.fx`` do not take them. `restore` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        If it is itself a recurrent module, use ``fastrnn.torch.LSTM.of(model)`` instead.
    backend : {"cpu", "cuda"}
        Where the model computes. Modules elsewhere are not replaced.

    Returns
    -------
    report : Report
        What was replaced, and what was not and why; ``print`` shows it.

    Raises
    ------
    TypeError
        ``model`` is not a module.
    ValueError
        It is itself a recurrent module, which cannot be replaced in place, or there is no GPU.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.RNNBase):
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
        why = obstacle(child, backend)
        if why:
            report.kept[name] = why
            continue
        if child not in made:
            made[child] = _CLASSES[type(child)].of(child, backend=backend)
            vars(made[child])[_ORIGINAL] = child  # not a submodule
        parent._modules[key] = made[child]
        report.replaced.append(name)
    return report


def restore(model: nn.Module) -> list[str]:
    """Undo `accelerate`, with the parameters of now; the names of the modules put back.

    Raises
    ------
    ValueError
        A module was changed since, such that PyTorch's would not be the same; nothing is put back.
    """
    found = [entry for entry in _children(model) if _ORIGINAL in vars(entry[3])]
    for name, _, _, child in found:
        if not all(isinstance(p, nn.Parameter) for p in child._flat_weights):
            raise ValueError(f"{name}: remove what makes its weights no parameters first")
        if any(v for k, v in vars(child).items() if k.endswith("_hooks") and isinstance(v, dict)):
            raise ValueError(f"{name}: remove its hooks first")
    for _, parent, key, child in found:
        original = vars(child)[_ORIGINAL]
        for parameter in child._names():
            setattr(original, parameter, getattr(child, parameter))
        original.train(child.training)
        parent._modules[key] = original
    return [name for name, *_ in found]


def _children(model: nn.Module):
    """``(name, parent, key, child)`` of all submodules, those in several places each time."""
    parents = list(model.named_modules())
    for prefix, parent in parents:
        for key, child in list(parent._modules.items()):
            if child is not None:
                yield f"{prefix}.{key}" if prefix else key, parent, key, child
