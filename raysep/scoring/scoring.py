"""Computes all scores of one layer from X and y. Metrics share clusters, neighbours and fits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.config import ScoreConfig
from raysep.config.names import DIAGNOSTIC, Wanted
from raysep.config.registry import METRICS
from raysep.scoring.backend import Backend
from raysep.scoring.backends import out_of_memory
from raysep.scoring.cache import LARGE_BYTES, LayerScores
from raysep.scoring.diagnostics import ALWAYS, diagnose
from raysep.scoring.memory import return_freed_memory, return_gpu_memory
from raysep.scoring.registry import Measured


@dataclass(frozen=True)
class Score:
    """One score of a layer: a row of the score table.

    Attributes:
        n: number of images.
        backend: name of the backend that computed it.
        seconds: computation time. Shared intermediates count for the first score that needs them.
    """

    protocol: str
    metric: str
    measured: Measured
    n: int
    backend: str
    seconds: float


def score_layer_with_fallback(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    wanted: Sequence[Wanted],
    backends: Sequence[Backend],
    config: ScoreConfig,
    on_fallback: Callable[[], None],
) -> list[Score]:
    """Score a layer as `score_layer`, with the next backend when one runs out of GPU memory.

    Args:
        X: may be modified.
        backends: backends in the order of preference. The scores name the backend that succeeded.
        on_fallback: called before each fallback.
    """
    for backend, fallback in pairwise([*backends, None]):
        assert backend is not None
        try:
            # This backend may leave X mean-centred for the next one, which changes no score.
            return score_layer(X, y, wanted, backend, config, overwrite=True)
        except Exception as error:
            if not backend.gpu or fallback is None or not out_of_memory(error):
                raise
        return_gpu_memory()
        on_fallback()
    raise AssertionError("no backend")


def score_layer(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    wanted: Sequence[Wanted],
    backend: Backend,
    config: ScoreConfig,
    overwrite: bool = False,
) -> list[Score]:
    """Compute all wanted scores of one layer.

    k-means starts and split-halves depend on the order of the rows, so callers sort by image_id.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        wanted: (protocol, metric) of each score, or `diagnostic` and one of `names.DIAGNOSTICS`.
        backend: for protocol `default` and diagnostics.
        config: seeds, resamples, sample.
        overwrite: X may be modified, which saves a copy unless protocol `paper` needs the unmodified X.

    Returns:
        Scores in the order of `wanted`. A layer with NaN or infinity, or with fewer than two classes, has the value
        None, except for diagnostics in `diagnostics.ALWAYS`.
    """
    shared: dict[tuple[Any, ...], Any] = {}
    overwrite = overwrite and all(protocol != "paper" for protocol, _ in wanted)
    layers: dict[str, LayerScores] = {}
    scores: dict[Wanted, Score] = {}
    for protocol, metric in sorted(wanted, key=_order):
        # Metrics with the same definition in both protocols are computed once.
        kind = "default" if protocol != DIAGNOSTIC and METRICS[metric].shared else protocol
        if kind not in layers:
            layers[kind] = LayerScores(X, y, backend, config, kind, shared, overwrite)
        layer = layers[kind]
        start = time.perf_counter()
        if protocol == DIAGNOSTIC:
            measured = Measured(diagnose(layer, metric))
        elif layer.scorable:
            measured = layer.cached("measured", metric, kind, compute=partial(METRICS[metric].compute, layer))
        else:
            measured = Measured(None)
        if X.nbytes >= LARGE_BYTES:
            return_freed_memory()
        seconds = time.perf_counter() - start
        scores[protocol, metric] = Score(protocol, metric, measured, len(y), layer.backend.name, seconds)
    return [scores[name] for name in wanted]


def _order(wanted: Wanted) -> int:
    """Sort key: diagnostics that need the unmodified X first; metrics with large cached intermediates last."""
    protocol, metric = wanted
    if protocol == DIAGNOSTIC and metric in ALWAYS:
        return 0
    return 2 if protocol != DIAGNOSTIC and METRICS[metric].large else 1
