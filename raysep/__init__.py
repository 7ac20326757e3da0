"""raysep: which layer of a vision model generalizes best to classes it was never trained on.

The method is the one of Dyballa, Gerritz and Zucker, "A separability-based approach to quantifying
generalization: which layer is best?" (arXiv:2405.01524). See raysep/README.md for how an image leads to the score g.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysep.arrays import Comparison, Scores, compare, score
    from raysep.results import Embeddings, Results, run
    from raysep.results import open as open  # noqa: A004

__version__ = "0.1.0"
__all__ = ["Comparison", "Embeddings", "Results", "Scores", "compare", "run", "score"]

_ARRAYS = ("Comparison", "Scores", "compare", "score")
# Not in `__all__`: an import of all names must not replace the built-in function.
_RESULTS = ("Embeddings", "Results", "open", "run")


def __getattr__(name: str) -> Any:
    # Imported at first use: NumPy, pydantic and pyarrow take longer than all of `import raysep`.
    if name in _ARRAYS:
        from raysep import arrays

        return getattr(arrays, name)
    if name in _RESULTS:
        from raysep import results

        return getattr(results, name)
    raise AttributeError(f"module 'raysep' has no attribute {name!r}")
