"""Memory that is free for this process is not yet free for others."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Have glibc give freed memory back. It keeps blocks of up to 32 MB for itself, which add up (malloc_trim(3))."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def return_gpu_memory() -> None:
    """Have torch give what it keeps of the GPU back to other processes."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
