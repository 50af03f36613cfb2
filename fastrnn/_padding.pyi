from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

def pad_sequences(
    sequences: Iterable[ArrayLike] | tuple[NDArray[Any], ArrayLike],
    *,
    max_len: int | None = None,
    padding: Literal["post", "pre"] = "post",
    truncating: Literal["post", "pre"] = "post",
    value: int = 0,
    batch_first: bool = False,
) -> tuple[NDArray[Any], NDArray[np.int64]]: ...
def sort_lengths(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]: ...
