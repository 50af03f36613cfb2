"""What all layers share: parameters by name, and their packed copy."""

from collections.abc import Mapping

import numpy as np

from fastrnn.kernels import get_backend
from fastrnn.parameters import Parameters


class Layer:
    """A layer with parameters; subclasses say how a backend packs them (`_pack`)."""

    parameters: Parameters

    def __init__(self, parameters: Mapping[str, np.ndarray], dtype, backend: str):
        self.backend = backend
        self._kernels = get_backend(backend)
        self.parameters = Parameters(parameters, dtype)
        self._packed = None
        self._packed_of: tuple | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the parameters, and of everything the layer computes."""
        return self.parameters.dtype

    def _weights(self):
        """The backend's copy of the parameters, made again only after they changed."""
        key = (id(self.parameters), self.parameters.version)
        if key != self._packed_of:
            self._packed = None  # its memory serves for the next
            self._packed, self._packed_of = self._pack(), key
        return self._packed

    def _pack(self):
        raise AssertionError("a layer says how it is packed")

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the parameters under PyTorch's names and in its shapes."""
        return self.parameters.state_dict()

    def load_state_dict(self, mapping: Mapping) -> None:
        """Take over parameters, for example from ``torch.nn.Module.state_dict()``.

        Raises
        ------
        ValueError
            A name is missing or unknown, a shape differs, a value is not finite.
        TypeError
            ``mapping`` is not a mapping, or a value is not real.
        """
        self.parameters.load_state_dict(mapping)
