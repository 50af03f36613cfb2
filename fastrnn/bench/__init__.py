"""What is timed, against whom and how: for ``fastrnn bench`` and the project's benchmarks."""
