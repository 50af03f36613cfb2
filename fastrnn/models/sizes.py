"""What a config asks for is compared with the weights before anything is allocated.

A damaged file may ask for a billion units; the weights beside it are as large as their file.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def width(weights: Arrays, name: str) -> int:
    """The size of the last axis of an array; 0 if there is none of that name."""
    array = weights.get(name)
    return 0 if array is None or not array.ndim else array.shape[-1]


def sizes_of_stack(weights: Arrays, prefix: str) -> tuple[int, int]:
    """``(hidden_size, num_layers)`` of the layer whose parameters begin with ``prefix``."""
    layers = 0
    while f"{prefix}weight_hh_l{layers}" in weights:
        layers += 1
    projected = width(weights, f"{prefix}weight_hr_l0")
    return projected or width(weights, f"{prefix}weight_hh_l0"), layers


def check_sizes(path: Path, settings: Mapping, sizes: Mapping[str, int]) -> None:
    """Raise ValueError, with the file's name, if a setting is not the size of the weights."""
    for name, size in sizes.items():
        if type(settings.get(name)) is not int or settings[name] != size:
            raise ValueError(f"{path} does not fit the weights beside it: {name} must be {size}")
