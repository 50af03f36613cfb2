"""The compiled extensions; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension("fastrnn._gather", ["src_cython/gather.pyx"]),
            Extension("fastrnn._padding", ["src_cython/padding.pyx"]),
        ]
    )
)
