"""What torch itself saves: tensors and plain values are read, and no code is run."""

import io
from typing import Any

import torch


def unpickled(content: bytes) -> Any:
    """Tensors, on the CPU, and plain values. Raises ValueError for what is damaged or holds anything else."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # Of damaged bytes the reader may raise anything.
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
