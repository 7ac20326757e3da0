"""Who computes clusters, neighbours and fits: scikit-learn, the reference; torch, with shared work; cuML.

One interface; each imports its library when it is first used.
"""

import importlib.util

from raysep.config.names import Backend
from raysep.errors import UsageError
from raysep.scoring.backends.base import Engine, Fold, Starts
from raysep.scoring.backends.sklearn import SklearnEngine

__all__ = ["Engine", "Fold", "SklearnEngine", "Starts", "cuml_problem", "open_engine", "open_engines", "out_of_memory"]


def cuml_problem() -> str | None:
    """Why cuML can't be used in this process, or None if it can."""
    if importlib.util.find_spec("cuml") is None:
        return "cuML is not installed: pip install 'raysep[gpu]'"
    return None if _gpu() else "no NVIDIA GPU in this process"


def open_engine(backend: Backend) -> Engine:
    """The engine for a configured backend.

    `auto` takes cuML where a GPU and the package are there, else torch, on the GPU if there is one. On CPUs torch was
    never slower than scikit-learn, from 100 x 16 to 5,000 x 384, so that no size needs the other
    (`jobs/benchmarks/scoring.py --part sizes`).

    Raises:
        UsageError: `cuml` is asked for and can't be used.
    """
    if backend == "sklearn":
        return SklearnEngine()
    problem = cuml_problem() if backend in {"auto", "cuml"} else None
    if backend == "cuml" and problem is not None:
        raise UsageError(f"score.backend is cuml: {problem}; or take `auto`")
    if backend != "torch" and problem is None:
        from raysep.scoring.backends.cuml import CumlEngine

        return CumlEngine()
    from raysep.scoring.backends.torch import TorchEngine

    return TorchEngine("cuda" if _gpu() else "cpu")


def open_engines(backend: Backend) -> list[Engine]:
    """The engine for a backend, and where that one is on a GPU, torch on the CPU behind it. Raises as `open_engine`."""
    first = open_engine(backend)
    if not first.gpu:
        return [first]
    from raysep.scoring.backends.torch import TorchEngine

    return [first, TorchEngine("cpu")]


def out_of_memory(error: BaseException) -> bool:
    """Whether a library said that there is no memory left: torch and RMM by a type, CUDA's libraries in words."""
    import torch

    said = str(error).lower()
    words = isinstance(error, RuntimeError) and ("out of memory" in said or "alloc_failed" in said)
    return words or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()
