"""What all layers share: parameters by name, and a copy in the form that the kernels want."""

from collections.abc import Mapping

import numpy as np

from fastrnn import checks
from fastrnn.kernels.backend import (
    ONLY_INFERENCE,
    PRECISIONS,
    UsesBackend,
    get_backend,
    training_precisions,
)
from fastrnn.parameters import Parameters
from fastrnn.types import Precision


class Layer:
    """A layer with parameters."""

    parameters: Parameters

    def __init__(self, values: Mapping[str, np.ndarray], dtype):
        self.parameters = Parameters(values, dtype)

    @property
    def dtype(self) -> np.dtype:
        """The type of the parameters and of everything that the layer computes."""
        return self.parameters.dtype

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the parameters under PyTorch's names and in its shapes."""
        return self.parameters.state_dict()

    def load_state_dict(self, mapping: Mapping, *, prefix: str = "") -> None:
        """Copy parameters from a mapping, for example ``torch.nn.Module.state_dict()``.

        Parameters
        ----------
        mapping : mapping of str to array or tensor
        prefix : str, default ""
            Of the names in ``mapping``, for example "encoder.lstm."; others are ignored.

        Raises
        ------
        ValueError
            A name is missing or unknown, a shape differs, a value is not finite.
        TypeError
            ``mapping`` is not a mapping, or a value is not real.
        """
        self.parameters.load_state_dict(mapping, prefix=prefix)


class PackedLayer(UsesBackend, Layer):
    """A layer whose parameters a backend packs; a subclass implements `_pack`."""

    _precision: Precision = "float32"

    def __init__(
        self,
        values: Mapping[str, np.ndarray],
        dtype,
        backend: str,
        precision: Precision = "float32",
    ):
        super().__init__(values, dtype)
        self.backend = backend
        self._kernels = get_backend(backend)
        self.precision = precision
        self._packed: dict = {}

    @property
    def precision(self) -> Precision:
        """What products are computed in; it may be set at any time, for what is computed next."""
        return self._precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        checks.choice("precision", value, PRECISIONS[self.backend])
        if value != "float32" and self.dtype != np.float32:
            raise ValueError(f"precision must be float32 with dtype {self.dtype}, got {value!r}")
        self._precision = value

    def _check_trains(self) -> None:
        if self.precision in ONLY_INFERENCE:
            names = " or ".join(training_precisions(self.backend))
            raise ValueError(f"precision must be {names} for training, got {self.precision!r}")

    def __getstate__(self):
        return super().__getstate__() | {"_packed": {}}

    def _weights(self):
        """The backend's copy of the parameters; made again only after they have changed."""
        parameters, precision = self.parameters, self._precision
        key = (id(parameters), parameters.version, precision)
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed.setdefault(key, self._pack(precision))  # the same for all threads
            for old in [k for k in self._packed if k != key]:
                self._packed.pop(old, None)
        return packed

    def _pack(self, precision: str):
        raise NotImplementedError
