"""What kernels and the Cython extensions run on: threads, and memory that is used again."""
