"""raysep: which layer of a vision model generalizes best to classes it was never trained on.

The method is the one of Dyballa, Gerritz and Zucker, "A separability-based approach to quantifying
generalization: which layer is best?" (arXiv:2405.01524). See raysep/README.md for how an image leads to the score g.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysep.arrays import Comparison, Scores, compare, score

__version__ = "0.1.0"
__all__ = ["Comparison", "Scores", "compare", "score"]


def __getattr__(name: str) -> Any:
    # Imported at first use: NumPy, pydantic and pyarrow take longer than all of `import raysep`.
    if name in __all__:
        from raysep import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module 'raysep' has no attribute {name!r}")
