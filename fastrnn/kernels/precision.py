"""The one setting of the CUDA backend, here so that setting it needs no GPU."""

from fastrnn import checks

PRECISIONS = ("float32", "tf32", "bf16")
_name = "float32"


def set_cuda_precision(name: str) -> None:
    """Set how float32 LSTMs multiply by ``weight_hh`` on GPUs with thread-block clusters.

    Parameters
    ----------
    name : {"float32", "tf32", "bf16"}
        "float32", at first, adds up products of two bfloat16 parts of each number, to about
        2**-16 of the largest; "tf32" rounds to 10 bits of fraction and "bf16" to 7, and both
        take the machine's own tanh, good to 11. Sums and states are float32 always.

    Raises
    ------
    ValueError
        There is no such precision.
    """
    global _name
    _name = checks.choice("name", name, PRECISIONS)


def get_cuda_precision() -> str:
    """How float32 LSTMs multiply on GPUs with thread-block clusters."""
    return _name
