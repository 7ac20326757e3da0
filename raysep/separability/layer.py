"""One layer under one protocol: X, y, and what its scores share, each computed once when it is first asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysep.separability import halves
from raysep.separability.backends import Engine, SklearnEngine, Starts
from raysep.separability.few_shot import FewShot, NearestMeans
from raysep.separability.probe import linear_probe

PAPER_K = 500
PAPER_SEED = 42
STARTS = 10

Labels = NDArray[np.integer[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How layers are scored: `score` of the configuration, without what chooses the scores."""

    seed: int = 42
    resamples: int = 200
    max_classes: int | None = 20


class Layer:
    """X, y, and what is computed from them.

    N images, D features, K classes present.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        engine: computes clusters, neighbours and probes.
        settings: seeds and resamples.
        protocol: `paper` does exactly what the reference code did: one k-means++ start from random state
            42 on raw features with scikit-learn, and purity over 500 neighbours whatever the class sizes.
        shared: results that both protocols of a layer have in common.
    """

    def __init__(
        self,
        X: NDArray[np.float32],
        y: Labels,
        engine: Engine,
        settings: Settings,
        protocol: str = "default",
        shared: dict[tuple[Any, ...], Any] | None = None,
    ) -> None:
        self.X, self.y, self.settings, self.protocol = X, y, settings, protocol
        self.paper = protocol == "paper"
        self.engine = SklearnEngine() if self.paper else engine
        self.seed = PAPER_SEED if self.paper else settings.seed
        self.class_sizes = np.unique(y, return_counts=True)[1]
        self.n_classes = len(self.class_sizes)
        self._shared = {} if shared is None else shared

    def once(self, *name: Any, compute: Callable[[], T]) -> T:
        """A result by name, computed once for all protocols that would compute the same."""
        place = (*name, self.engine.name, self.seed)
        if place not in self._shared:
            self._shared[place] = compute()
        result: T = self._shared[place]
        return result

    @property
    def scorable(self) -> bool:
        """Whether any score is defined: finite, and two classes or more."""
        return self.n_classes > 1 and bool(np.isfinite(self.X).all())

    @property
    def purity_k(self) -> int:
        """k of `knn_purity`: 500 in the paper, else what the smallest class allows."""
        if self.paper:
            return min(PAPER_K, len(self.y) - 1)
        return int(self.class_sizes.min()) - 1

    @property
    def starts(self) -> Starts:
        """k-means from ten starts, as many clusters as classes. The paper's single start is the first."""
        return self.once("starts", compute=lambda: self.engine.kmeans(self.X, self.n_classes, STARTS, self.seed))

    @property
    def clusters(self) -> Labels:
        """(N,) the clusters that are scored."""
        if self.paper:
            first: Labels = self.starts.labels[0]
            return first
        return self.starts.best

    @property
    def neighbors(self) -> NDArray[np.int64]:
        """(N, k) neighbours, as many as any metric needs."""
        k = max(self.purity_k, int(self.class_sizes.max()) - 1, 1)
        return self.once("neighbors", k, compute=lambda: self.engine.neighbors(self.X, k))

    @property
    def probed(self) -> NDArray[np.bool_] | None:
        """(N,) what the linear probe is right about."""
        return self.once("probe", compute=lambda: linear_probe(self.X, self.y, self.engine, self.seed))

    def few_shot(self, shots: int) -> FewShot | None:
        """What a classifier of few labelled images is right about."""
        return self.once("few_shot", shots, compute=lambda: self.nearest_means.classify(shots, self.seed))

    @property
    def nearest_means(self) -> NearestMeans:
        """The few-shot classifiers."""
        return self.once("nearest_means", compute=lambda: NearestMeans(self.X, self.y))

    @cached_property
    def in_a(self) -> NDArray[np.bool_] | None:
        """(N, S) the halves; None where no interval is asked for, or a class is too small for two halves."""
        if not self.settings.resamples or self.class_sizes.min() < 4:
            return None
        # Always of the same seed, so that protocols and layers are compared on the same halves.
        return halves.draw_halves(self.y, self.settings.resamples, self.settings.seed)

    @property
    def cluster_halves(self) -> dict[str, halves.HalfValues]:
        """NMI, AMI and ARI on each half. Only where there are halves."""
        assert self.in_a is not None
        in_a = self.in_a
        return self.once(
            "cluster_halves",
            compute=lambda: halves.clusters_on_halves(self.X, self.y, self.n_classes, in_a, self.settings.seed),
        )

    def permuted(self, times: int) -> list[Labels]:
        """The labels, shuffled: the same shuffles for every layer of the same labels."""
        rng = np.random.default_rng(self.seed)
        return [rng.permutation(self.y) for _ in range(times)]
