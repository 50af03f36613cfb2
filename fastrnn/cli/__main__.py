"""``python -m fastrnn.cli``."""

from . import main

main()
