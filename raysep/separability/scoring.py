"""One layer's X and y to its scores. Clusters and neighbours are computed once and shared by the metrics.

To add a metric: write the function in `metrics.py`, name it in `names.py`, and say in `METRIC_OF` what it
is given.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.separability import metrics
from raysep.separability.backends import Engine, SklearnEngine
from raysep.separability.names import Metric, Protocol, Score
from raysep.separability.probe import linear_probe

PAPER_K = 500
PAPER_SEED = 42


class Embedding:
    """One layer under one protocol: X, y, and what is computed from them once.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        protocol: `paper` does exactly what the reference code did: one k-means++ start from random state
            42 on raw features with scikit-learn, and purity over 500 neighbours whatever the class sizes.
        engine: computes under protocol `default`; `paper` is always scikit-learn's.
        seed: for protocol `default`.
    """

    def __init__(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.integer[Any]],
        protocol: Protocol,
        engine: Engine,
        seed: int,
    ) -> None:
        self.X, self.y, self.protocol = X, y, protocol
        self.engine = SklearnEngine() if protocol == "paper" else engine
        self.seed = PAPER_SEED if protocol == "paper" else seed
        self.class_sizes = np.unique(y, return_counts=True)[1]
        self.n_classes = len(self.class_sizes)
        self.finite = bool(np.isfinite(X).all())

    @property
    def purity_k(self) -> int:
        """k of `knn_purity`: 500 in the paper, else what the smallest class allows."""
        if self.protocol == "paper":
            return min(PAPER_K, len(self.y) - 1)
        return int(self.class_sizes.min()) - 1

    @cached_property
    def clusters(self) -> NDArray[np.integer[Any]]:
        """(N,) k-means clusters, as many as there are classes."""
        return self.engine.kmeans(self.X, self.n_classes, 1 if self.protocol == "paper" else 10, self.seed)

    @cached_property
    def neighbors(self) -> NDArray[np.int64]:
        """(N, k) neighbours, as many as any metric needs."""
        needed = max(self.purity_k, int(self.class_sizes.max()) - 1, 1)
        return self.engine.neighbors(self.X, needed)


def _nmi(e: Embedding) -> tuple[float | None, int | None]:
    return metrics.nmi(e.y, e.clusters), e.n_classes


def _ami(e: Embedding) -> tuple[float | None, int | None]:
    return metrics.ami(e.y, e.clusters), e.n_classes


def _ari(e: Embedding) -> tuple[float | None, int | None]:
    return metrics.ari(e.y, e.clusters), e.n_classes


def _knn_purity(e: Embedding) -> tuple[float | None, int | None]:
    divisor = PAPER_K if e.protocol == "paper" else None
    return metrics.knn_purity(e.y, e.neighbors, e.purity_k, divisor), e.purity_k


def _nn1(e: Embedding) -> tuple[float | None, int | None]:
    return metrics.nn1(e.y, e.neighbors), 1


def _r_precision(e: Embedding) -> tuple[float | None, int | None]:
    return metrics.r_precision(e.y, e.neighbors), None


def _linear_probe(e: Embedding) -> tuple[float | None, int | None]:
    return linear_probe(e.X, e.y, e.engine, e.seed), None


def _few_shot(shots: int) -> Callable[[Embedding], tuple[float | None, int | None]]:
    return lambda e: (metrics.few_shot(e.X, e.y, shots, e.seed), shots)


# Metrics that both protocols define alike: asked for under both, they are computed once.
SHARED: frozenset[Metric] = frozenset({"nn1", "r_precision", "linear_probe", "few_shot_1", "few_shot_5"})

# What each metric is given, and its number k.
METRIC_OF: dict[Metric, Callable[[Embedding], tuple[float | None, int | None]]] = {
    "nmi": _nmi,
    "ami": _ami,
    "ari": _ari,
    "knn_purity": _knn_purity,
    "nn1": _nn1,
    "r_precision": _r_precision,
    "linear_probe": _linear_probe,
    "few_shot_1": _few_shot(1),
    "few_shot_5": _few_shot(5),
}


def score_layer(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    wanted: Sequence[tuple[Protocol, Metric]],
    engine: Engine,
    seed: int,
) -> list[Score]:
    """All wanted scores of one layer.

    Rows are taken as they come: k-means starts depend on their order, so callers sort by image_id.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        wanted: protocol and metric of each score.
        engine: for protocol `default`.
        seed: for protocol `default`.

    Returns:
        A score for each wanted one, in their order. A layer with NaN or infinity, or with fewer than two
        classes, has None for all of them.
    """
    embeddings: dict[Protocol, Embedding] = {}
    known: dict[tuple[Metric, str, int], Score] = {}
    scores = []
    for protocol, metric in wanted:
        if protocol not in embeddings:
            embeddings[protocol] = Embedding(X, y, protocol, engine, seed)
        embedding = embeddings[protocol]
        place = (metric, embedding.engine.name, embedding.seed)
        if metric in SHARED and place in known:
            scores.append(replace(known[place], protocol=protocol, seconds=0.0))
            continue
        start = time.perf_counter()
        usable = embedding.finite and embedding.n_classes > 1
        value, k = METRIC_OF[metric](embedding) if usable else (None, None)
        seconds = time.perf_counter() - start
        known[place] = Score(protocol, metric, value, len(y), k, embedding.engine.name, seconds)
        scores.append(known[place])
    return scores
