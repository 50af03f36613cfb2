"""PyTorch modules that compute with fastrnn's kernels, and `accelerate` for models there are.

>>> import torch, fastrnn.torch
>>> lstm = fastrnn.torch.LSTM(64, 128, batch_first=True)    # in place of torch.nn.LSTM
>>> print(fastrnn.torch.accelerate(model))                  # or: all of a model, in place
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    from fastrnn.extras import needs

    raise ImportError(needs("fastrnn.torch needs PyTorch", "torch")) from error

from .accelerate import Report, accelerate, restore
from .modules import GRU, LSTM, RNN, state_dict

__all__ = ["GRU", "LSTM", "RNN", "Report", "accelerate", "restore", "state_dict"]
