"""Memory that is free for this process is not yet free for others."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Have glibc give freed memory back. It keeps blocks of up to 32 MB for itself, which add up (malloc_trim(3))."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
