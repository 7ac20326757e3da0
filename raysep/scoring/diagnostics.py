"""Diagnostics of a layer, computed by `health.py`: they have protocol `diagnostic` in the score table."""

from collections.abc import Callable

import numpy as np

from raysep.scoring import health
from raysep.scoring.cache import LayerScores


def _estimated(layer: LayerScores) -> float | None:
    largest = layer.config.max_classes
    return None if largest is None else health.estimated_classes(layer.X, layer.backend, layer.seed, largest)


# Diagnostics of any X, and those that need finite values and two classes.
ALWAYS: dict[str, Callable[[LayerScores], float | None]] = {
    "nonfinite_rows": lambda layer: layer.nonfinite,
    "constant_features": lambda layer: health.constant_features(layer.X),
    "duplicate_rows": lambda layer: len(layer.groups) - len(np.unique(layer.groups)),
}
IF_SCORABLE: dict[str, Callable[[LayerScores], float | None]] = {
    "effective_rank": lambda layer: health.effective_rank(layer.rows),
    "empty_clusters": lambda layer: layer.n_classes - len(np.unique(layer.clusters)),
    "start_agreement": lambda layer: health.start_agreement(layer.starts.labels),
    "estimated_classes": _estimated,
}


def diagnose(layer: LayerScores, name: str) -> float | None:
    """Compute one of `names.DIAGNOSTICS`; None where it isn't defined for the layer."""
    if name in ALWAYS:
        return ALWAYS[name](layer)
    return IF_SCORABLE[name](layer) if layer.scorable else None
