"""Types of public signatures."""

from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np

Path: TypeAlias = str | PathLike[str]
DType: TypeAlias = Literal["float32", "float64"] | np.dtype[Any] | type[np.floating]
BackendName: TypeAlias = Literal["cpu", "cuda", "reference"]
Precision: TypeAlias = Literal["float32", "bf16", "int8", "tf32"]

# Array_like: lists, arrays of NumPy, tensors of any package. NumPy's ArrayLike has no tensors.
Input: TypeAlias = Any
Grads: TypeAlias = dict[str, np.ndarray]
