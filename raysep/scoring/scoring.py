"""One layer's X and y to its scores. Clusters, neighbours and fits are computed once and shared by the metrics."""

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


def score_layer_somewhere(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    wanted: Sequence[Wanted],
    backends: Sequence[Backend],
    config: ScoreConfig,
    on_fallback: Callable[[], None],
) -> list[Score]:
    """`score_layer` with the first backend whose GPU has the memory for it, or that has no GPU.

    Args:
        X: may be changed.
        backends: in the order in which they are tried. The scores say which one it was.
        on_fallback: called when one is given up.
    """
    for backend, following in pairwise([*backends, None]):
        assert backend is not None
        try:
            # The next backend would find X as this one left it: around its mean, which no score notices.
            return score_layer(X, y, wanted, backend, config, own=True)
        except Exception as error:
            if not backend.gpu or following is None or not out_of_memory(error):
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
    own: bool = False,
) -> list[Score]:
    """All wanted scores of one layer.

    Rows are taken as they come: k-means starts and halves depend on their order, so callers sort by image_id.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        wanted: protocol and metric of each score, or `diagnostic` and one of `names.DIAGNOSTICS`.
        backend: for protocol `default` and diagnostics.
        config: seeds, resamples, sample.
        own: X is the caller's to give away: it may be changed, and is not copied where nothing needs it as it was.

    Returns:
        A score for each wanted one, in their order. A layer with NaN or infinity, or with fewer than two
        classes, has None for all of them but the diagnostics that say so.
    """
    shared: dict[tuple[Any, ...], Any] = {}
    own = own and all(protocol != "paper" for protocol, _ in wanted)
    layers: dict[str, LayerScores] = {}
    scores: dict[Wanted, Score] = {}
    for protocol, metric in sorted(wanted, key=_turn):
        # What both protocols define alike is computed once for both.
        kind = "default" if protocol != DIAGNOSTIC and METRICS[metric].shared else protocol
        if kind not in layers:
            layers[kind] = LayerScores(X, y, backend, config, kind, shared, own)
        layer = layers[kind]
        start = time.perf_counter()
        if protocol == DIAGNOSTIC:
            measured = Measured(diagnose(layer, metric))
        elif layer.scorable:
            measured = layer.once("measured", metric, kind, compute=partial(METRICS[metric].compute, layer))
        else:
            measured = Measured(None)
        if X.nbytes >= LARGE_BYTES:
            return_freed_memory()
        took = time.perf_counter() - start
        scores[protocol, metric] = Score(protocol, metric, measured, len(y), layer.backend.name, took)
    return [scores[one] for one in wanted]


def _turn(one: Wanted) -> int:
    """Sort key: diagnostics that need the unmodified X first; metrics with large cached intermediates last."""
    protocol, metric = one
    if protocol == DIAGNOSTIC and metric in ALWAYS:
        return 0
    return 2 if protocol != DIAGNOSTIC and METRICS[metric].large else 1
