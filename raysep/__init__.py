"""raysep: which layer of a vision model generalizes best to classes it was never trained on.

The method is the one of Dyballa, Gerritz and Zucker, "A separability-based approach to quantifying
generalization: which layer is best?" (arXiv:2405.01524). See raysep/README.md for how an image leads to the score g.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysep.api.arrays import Comparison, Scores, compare, score
    from raysep.api.extraction import embed
    from raysep.api.results import Embeddings, Results, run
    from raysep.api.results import open as open  # noqa: A004

__version__ = "0.1.0"
__all__ = ["Comparison", "Embeddings", "Results", "Scores", "compare", "embed", "run", "score"]

# By module. `open` is not in `__all__`: an import of all names must not replace the built-in function.
_NAMES = {
    "arrays": ("Comparison", "Scores", "compare", "score"),
    "extraction": ("embed",),
    "results": ("Embeddings", "Results", "open", "run"),
}


def __getattr__(name: str) -> Any:
    # Imported at first use: NumPy, pydantic and pyarrow take longer than all of `import raysep`.
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"raysep.api.{module}"), name)
    raise AttributeError(f"module 'raysep' has no attribute {name!r}")
