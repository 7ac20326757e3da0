"""Make freed memory available to other processes."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Return freed memory to the operating system: glibc retains blocks of up to 32 MB (malloc_trim(3))."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def return_gpu_memory() -> None:
    """Return torch's cached GPU memory to other processes."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
