"""Kernels: arrays in, arrays out. The contract is `backend.Backend`, the door is `device.Door`."""
