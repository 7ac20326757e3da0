"""Backends: scikit-learn, the reference; torch, with shared work; cuML. Each module here defines one, of its own name.

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
    """Register a class of backends. Raises ValueError for a name that is taken."""

    def register(kind: B) -> B:
        BACKENDS.add(name, kind)
        return kind

    return register


def open_backend(name: BackendName) -> Backend:
    """The backend for a configured name.

    `auto` takes cuML where a GPU and the package are there, else torch, on the GPU if there is one. On CPUs torch was
    never slower than scikit-learn, from 100 x 16 to 5,000 x 384, so that no size needs the other
    (`jobs/benchmarks/scoring.py --part sizes`).

    Raises:
        UsageError: the backend can't be used in this process, and why.
    """
    if name == "auto":
        name = "torch" if BACKENDS["cuml"].problem() else "cuml"
    kind: type[Backend] = BACKENDS[name]
    problem = kind.problem()
    if problem is not None:
        raise UsageError(f"score.backend is {name}: {problem}; or take `auto`")
    return kind()


def open_with_fallback(name: BackendName) -> list[Backend]:
    """The backend, and behind one on a GPU torch on the CPU. Raises as `open_backend`."""
    first = open_backend(name)
    if not first.gpu:
        return [first]
    from raysep.scoring.backends.torch import TorchBackend

    return [first, TorchBackend("cpu")]


def may_use_gpu(name: BackendName) -> bool:
    """Whether a GPU is of use to a backend."""
    return name == "auto" or bool(BACKENDS[name].uses_gpu)


def out_of_memory(error: BaseException) -> bool:
    """Whether a library ran out of memory: torch and RMM raise a type, CUDA's libraries say so in words."""
    import torch

    text = str(error).lower()
    words = isinstance(error, RuntimeError) and ("out of memory" in text or "alloc_failed" in text)
    return words or isinstance(error, MemoryError | torch.OutOfMemoryError)
