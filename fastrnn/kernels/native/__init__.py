"""The CPU kernels as machine code: which there are, what they take, and their source."""
