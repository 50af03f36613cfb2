"""ONNX: the recurrent nodes of a model as layers, and layers and models as ONNX files.

>>> import fastrnn.onnx
>>> layers = fastrnn.onnx.load_layers("model.onnx")         # {"lstm_1": LSTM(...), ...}
>>> fastrnn.onnx.save(fastrnn.LSTM(8, 16), "lstm.onnx")
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    from fastrnn.extras import needs

    raise ImportError(needs("fastrnn.onnx needs the package onnx", "onnx")) from error

from .read import load_layers, run_node
from .write import save

__all__ = ["load_layers", "run_node", "save"]
