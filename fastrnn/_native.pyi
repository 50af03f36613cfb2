from typing import Any

from numpy.typing import NDArray

class Kernel:
    """Machine code that takes its arguments in slots, see src_native/native.c."""

    name: str
    signature: str
    owner: Any
    def __new__(cls, name: str, signature: str, address: int, owner: Any) -> Kernel: ...
    def __call__(self, *arguments: Any) -> None: ...

class Plan:
    """A program that is kept, for inputs of one shape."""

    def __new__(
        cls,
        program: list,
        threads: int,
        min_work: int,
        together: bool,
        long: bool,
        x: NDArray[Any],
        y: NDArray[Any],
        initial: tuple[NDArray[Any], ...],
        final: tuple[NDArray[Any], ...],
    ) -> Plan: ...
    def __call__(self, x: Any, state: Any, unbatched: bool) -> tuple[Any, Any] | None: ...

def empty(shape: Any, dtype: Any) -> NDArray[Any]: ...
def held() -> tuple[int, int]: ...
def names(isa: str) -> list[str]: ...
def precompiled(isa: str, name: str) -> Kernel | None: ...
def release() -> None: ...
def run(program: list, threads: int, min_work: int, together: bool) -> None: ...
def supports(isa: str) -> bool: ...
