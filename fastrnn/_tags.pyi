import numpy as np
from numpy.typing import NDArray

def strict_spans(
    prefixes: NDArray[np.uint8],
    types: NDArray[np.int64],
    ids: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bioes: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
