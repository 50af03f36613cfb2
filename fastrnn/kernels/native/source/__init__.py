"""The source of the CPU kernels, in Numba; imported by the build and to compile at run time."""
