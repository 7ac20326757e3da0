"""One layer's X and y to its scores. Clusters, neighbours and fits are computed once and shared by the metrics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raysep.separability.backends import Engine
from raysep.separability.health import diagnose
from raysep.separability.layer import Layer, Settings
from raysep.separability.measures import ALIKE, MEASURES, Measured
from raysep.separability.names import DIAGNOSTIC, Metric, Wanted


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        n: images that it was computed on.
        backend: who computed it.
        seconds: its own time; what scores share is in the first that asked for it.
    """

    protocol: str
    metric: str
    measured: Measured
    n: int
    backend: str
    seconds: float


def score_layer(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    wanted: Sequence[Wanted],
    engine: Engine,
    settings: Settings,
) -> list[Score]:
    """All wanted scores of one layer.

    Rows are taken as they come: k-means starts and halves depend on their order, so callers sort by image_id.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        wanted: protocol and metric of each score, or `diagnostic` and one of `names.DIAGNOSTICS`.
        engine: for protocol `default` and diagnostics.
        settings: seeds and resamples.

    Returns:
        A score for each wanted one, in their order. A layer with NaN or infinity, or with fewer than two
        classes, has None for all of them but the diagnostics that say so.
    """
    shared: dict[tuple[Any, ...], Any] = {}
    layers: dict[str, Layer] = {}
    scores = []
    for protocol, metric in wanted:
        if protocol not in layers:
            layers[protocol] = Layer(X, y, engine, settings, protocol, shared)
        layer = layers[protocol]
        start = time.perf_counter()
        if protocol == DIAGNOSTIC:
            measured = Measured(diagnose(layer, metric))
        elif layer.scorable:
            measured = _measured(cast(Metric, metric), layer)
        else:
            measured = Measured(None)
        scores.append(Score(protocol, metric, measured, len(y), layer.engine.name, time.perf_counter() - start))
    return scores


def _measured(metric: Metric, layer: Layer) -> Measured:
    """A metric that both protocols define alike is computed once for both."""
    if metric in ALIKE:
        return layer.once("measured", metric, compute=lambda: MEASURES[metric](layer))
    return MEASURES[metric](layer)
