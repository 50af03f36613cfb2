"""Large arrays whose memory is used again, see src_native/arena.h."""

from fastrnn._native import empty, held, release

__all__ = ["empty", "held", "release"]
