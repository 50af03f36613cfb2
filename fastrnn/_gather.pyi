from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

def gather_rows(
    table: NDArray[Any], ids: ArrayLike, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
@overload
def scatter_add_rows(
    grads: NDArray[Any], ids: ArrayLike, *, out: NDArray[Any], num_rows: None = None
) -> NDArray[Any]: ...
@overload
def scatter_add_rows(
    grads: NDArray[Any], ids: ArrayLike, *, out: None = None, num_rows: int
) -> tuple[NDArray[np.int64], NDArray[Any]]: ...
def sum_rows(
    grads: NDArray[Any], ids: NDArray[Any], width: int, limit: int
) -> tuple[NDArray[Any], NDArray[Any]]: ...
