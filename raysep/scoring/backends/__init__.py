"""Backends: scikit-learn (the reference), torch (batched) and cuML. Each module defines the backend of its name.

A backend is a class with the methods of `scoring.backend.Backend`, registered by `@backend`.
"""

from collections.abc import Callable
from typing import TypeVar

from raysep.config.names import BackendName
from raysep.config.registry import BACKENDS
from raysep.errors import UsageError
from raysep.scoring.backend import Backend

B = TypeVar("B", bound=type[Backend])


def backend(name: str) -> Callable[[B], B]:
    """Register a backend class. Raises ValueError if the name is taken."""

    def register(kind: B) -> B:
        BACKENDS.add(name, kind)
        return kind

    return register


def open_backend(name: BackendName) -> Backend:
    """Create the backend of a configured name.

    `auto` selects cuML where both a GPU and the package exist, else torch, on the GPU if there is one. On CPUs torch
    was never slower than scikit-learn, from 100 x 16 to 5,000 x 384 (`jobs/benchmarks/scoring.py --part sizes`).

    Raises:
        UsageError: this process can't use the backend; the message says why.
    """
    if name == "auto":
        name = "torch" if BACKENDS["cuml"].problem() else "cuml"
    kind: type[Backend] = BACKENDS[name]
    problem = kind.problem()
    if problem is not None:
        raise UsageError(f"score.backend is {name}: {problem}; or set `auto`")
    return kind()


def open_with_fallback(name: BackendName) -> list[Backend]:
    """The configured backend, then, if it uses a GPU, torch on the CPU as fallback. Raises as `open_backend`."""
    first = open_backend(name)
    if not first.gpu:
        return [first]
    from raysep.scoring.backends.torch import TorchBackend

    return [first, TorchBackend("cpu")]


def may_use_gpu(name: BackendName) -> bool:
    """Whether a backend can use a GPU."""
    return name == "auto" or bool(BACKENDS[name].uses_gpu)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: torch and RMM have a type for it, CUDA's libraries only a message."""
    import torch

    text = str(error).lower()
    in_message = isinstance(error, RuntimeError) and ("out of memory" in text or "alloc_failed" in text)
    return in_message or isinstance(error, MemoryError | torch.OutOfMemoryError)
