"""The conventions of scikit-learn: parameters are stored as given and checked in ``fit``."""

import inspect
from collections.abc import Mapping
from typing import Any, Self


class Estimator:
    """An estimator whose parameters are the arguments of its ``__init__``."""

    _fitted: Any = None

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters, for the next `fit`."""
        unknown = sorted(params.keys() - set(self._names()))
        if unknown:
            raise ValueError(f"unknown parameters: {', '.join(unknown)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self):
        # scikit-learn asks for this, so it is there.
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=True),
            input_tags=InputTags(two_d_array=False, string=True),
        )  # fmt: skip

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        params = self.get_params()
        for name, value in params.items():
            if isinstance(value, Mapping) and len(value) > 8:
                params[name] = f"a mapping of {len(value):,} words"
        shown = [
            f"{k}={v!r}"
            for k, v in params.items()
            if v is not defaults[k].default and repr(v) != repr(defaults[k].default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
