"""Benchmark cases, peers and timing, for ``fastrnn bench`` and the project's benchmarks."""
