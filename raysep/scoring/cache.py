"""A layer under one protocol: embeddings X, labels y, and cached intermediate results that scores share."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysep.config import ScoreConfig
from raysep.scoring import knn, split_half, subsample, ties
from raysep.scoring.backend import Backend, Starts
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.few_shot import FewShot, NearestMeans
from raysep.scoring.health import nonfinite_rows
from raysep.scoring.memory import return_freed_memory
from raysep.scoring.metrics import PAPER_K
from raysep.scoring.probe import linear_probe

PAPER_SEED = 42
STARTS = 10
# With sampling: most neighbours to store in total, but always those of this many images.
NEIGHBORS, LEAST_QUERIES = 10_000_000, 1000
# Sample for clustering and few-shot classification of halves: images in total, and at least per class.
HALVED_IMAGES, HALVED_PER_CLASS = 3000, 10

# Layers of this size return freed memory to the operating system at once, to bound the memory of the process.
LARGE_BYTES = 32 * 2**20

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.int64]
T = TypeVar("T")


class LayerScores:
    """X, y, and the intermediates computed from them.

    N images, D features, K classes present.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        backend: computes clusters, neighbours and probes.
        config: seeds, number of half-samples, and size of the subsample.
        protocol: `paper` reproduces the reference code: one k-means++ start from random state 42 on raw features
            with scikit-learn, and purity over 500 neighbours of all images whatever the class sizes.
        shared: cache for both protocols of a layer.
        overwrite: the backend may modify X, which avoids a copy.
    """

    def __init__(
        self,
        X: NDArray[np.float32],
        y: Labels,
        backend: Backend,
        config: ScoreConfig,
        protocol: str = "default",
        shared: dict[tuple[Any, ...], Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.X, self.y, self.config, self.protocol = X, y, config, protocol
        self.paper = protocol == "paper"
        self.backend = SklearnBackend() if self.paper else backend
        self.seed = PAPER_SEED if self.paper else config.seed
        self.class_sizes = np.unique(y, return_counts=True)[1]
        self.n_classes = len(self.class_sizes)
        self._shared, self._overwrite = {} if shared is None else shared, overwrite
        self._sample = len(y) if self.paper or config.sample is None else min(len(y), config.sample)

    def cached(self, *name: Any, compute: Callable[[], T]) -> T:
        """The result of that name, computed once and shared by protocols with equal backend, seed and sample."""
        key = (*name, self.backend.name, self.seed, self._sample)
        if key not in self._shared:
            self._shared[key] = compute()
            if self.X.nbytes >= LARGE_BYTES:
                return_freed_memory()
        result: T = self._shared[key]
        return result

    @property
    def nonfinite(self) -> int:
        """Number of images with NaN or infinity."""
        return self.cached("nonfinite", compute=lambda: nonfinite_rows(self.X))

    @property
    def scorable(self) -> bool:
        """Whether scores are defined: X is finite and has at least two classes."""
        return self.n_classes > 1 and self.nonfinite == 0

    @property
    def purity_k(self) -> int:
        """k of `knn_purity`: 500 in protocol `paper`, else the size of the smallest class minus 1."""
        if self.paper:
            return min(PAPER_K, len(self.y) - 1)
        return int(self.class_sizes.min()) - 1

    @property
    def mean(self) -> NDArray[np.float32]:
        """(D,) mean of X, as it came."""
        return self.cached("mean", compute=lambda: self.X.mean(axis=0, dtype=np.float64).astype(np.float32))

    @property
    def on_device(self) -> Any:
        """X on the backend's device."""
        # Computed before the backend may overwrite X.
        _ = self.mean
        return self.cached("on_device", compute=lambda: self.backend.to_device(self.X, self._overwrite))

    @property
    def rows(self) -> NDArray[np.float32]:
        """(N, D) mean-centred X."""
        return self.cached("rows", compute=lambda: self.backend.rows(self.on_device))

    @cached_property
    def queries(self) -> Positions | None:
        """(Q,) positions of the query images for neighbours and few-shot classification; None: all."""
        size = self._sample
        if size < len(self.y):
            # Images of large classes need many neighbours.
            size = min(size, max(LEAST_QUERIES, NEIGHBORS // self._counted_neighbors))
        return subsample.stratified(self.y, size, self.config.seed)

    @property
    def _counted_neighbors(self) -> int:
        return max(self.purity_k, int(self.class_sizes.max()) - 1, 1)

    @property
    def starts(self) -> Starts:
        """k-means from ten starts, with as many clusters as classes. Protocol `paper` scores the first of them."""
        fitted = subsample.uniform(len(self.y), max(self._sample, self.n_classes), self.config.seed)
        return self.cached(
            "starts", compute=lambda: self.backend.kmeans(self.on_device, self.n_classes, STARTS, self.seed, fitted)
        )

    @property
    def clusters(self) -> Labels:
        """(N,) clusters to score: the best start, or the first for protocol `paper`."""
        if self.paper:
            first: Labels = self.starts.labels[0]
            return first
        return self.cached("clusters", compute=lambda: self.starts.best)

    @property
    def neighbors(self) -> NDArray[np.integer[Any]]:
        """(Q, k) neighbours, with the largest k that any metric needs."""
        k = self._counted_neighbors
        return self.cached("neighbors", k, compute=lambda: self.backend.neighbors(self.on_device, k, self.queries))

    @property
    def cosine_votes(self) -> tuple[NDArray[np.integer[Any]], NDArray[np.float64]]:
        """(Q, k) positions of each query's nearest images by cosine similarity, and (Q, k) weights of their votes."""

        def search() -> tuple[NDArray[np.integer[Any]], NDArray[np.float64]]:
            # X may be overwritten by its mean-centred rows.
            unit = knn.unit_rows(self.rows + self.mean)
            k = min(knn.SEARCHED, len(self.y) - 1)
            found = self.backend.neighbors(self.backend.to_device(unit), k, self.queries)
            return found, knn.vote_weights(unit, found, self.query_positions)

        return self.cached("cosine_votes", compute=search)

    @property
    def query_positions(self) -> Positions:
        """(Q,) positions of the query images."""
        return np.arange(len(self.y)) if self.queries is None else self.queries

    @property
    def groups(self) -> Positions:
        """(N,) position of the first image with the same vector, to identify duplicates."""
        return self.cached("groups", compute=lambda: ties.groups_of(self.X))

    @property
    def hits(self) -> NDArray[Any]:
        """(Q, k) whether each neighbour has the label of its image; a share for a neighbour with duplicates."""
        k = self._counted_neighbors
        return self.cached("hits", k, compute=lambda: ties.hits(self.y, self.neighbors, self.groups, self.queries))

    @property
    def probed(self) -> NDArray[np.bool_] | None:
        """(N,) whether the linear probe classifies each image correctly."""
        return self.cached(
            "probe", compute=lambda: linear_probe(self.on_device, self.y, self.backend, self.seed, sample=self._sample)
        )

    def few_shot(self, shots: int) -> FewShot | None:
        """Results of the nearest-class-mean classifier on `shots` labelled images per class."""
        return self._nearest_means.classify(shots, self.seed)

    @property
    def _nearest_means(self) -> NearestMeans:
        return self.cached("nearest_means", compute=lambda: NearestMeans(self.rows, self.y, self.queries))

    @cached_property
    def in_a(self) -> NDArray[np.bool_] | None:
        """(N, S) masks of half `a`; None without resamples, or where classes are too small for split-halves."""
        return self._halves_of(self.y)

    @cached_property
    def halved(self) -> Positions | None:
        """Positions of the images that are halved for clustering and few-shot classification; None for all images."""
        return subsample.balanced(self.y, HALVED_IMAGES, HALVED_PER_CLASS, self.config.seed + 1)

    @property
    def cluster_halves(self) -> dict[str, split_half.HalfValues] | None:
        """NMI, AMI and ARI on each half."""
        halved = self.halved_images()
        if halved is None:
            return None
        rows, y, in_a = halved
        return self.cached(
            "cluster_halves",
            compute=lambda: split_half.clusters_on_halves(rows, y, self.n_classes, in_a, self.config.seed),
        )

    def few_shot_halves(self, shots: int) -> split_half.HalfValues | None:
        """Few-shot accuracy on each half."""
        halved = self.halved_images()
        if halved is None:
            return None
        rows, y, in_a = halved
        if self.halved is None and self.queries is None:
            classifier = self._nearest_means
        else:
            classifier = self.cached("halved_means", compute=lambda: NearestMeans(rows, y))
        return split_half.few_shot_on_halves(classifier, shots, in_a, self.seed)

    @property
    def _of_halved(self) -> tuple[NDArray[np.float32], Labels]:
        if self.halved is None:
            return self.rows, self.y
        return self.cached("of_halved", compute=lambda: (self.rows[self.halved], self.y[self.halved]))

    def halved_images(self) -> tuple[NDArray[np.float32], Labels, NDArray[np.bool_]] | None:
        """Rows (n, D), labels (n,) and masks (n, S) of half `a`, for the images in `halved`; None without halves."""
        rows, y = self._of_halved
        in_a = self._halves_of(y)
        return None if in_a is None else (rows, y, in_a)

    def _halves_of(self, y: Labels) -> NDArray[np.bool_] | None:
        if not self.config.resamples or not split_half.can_be_halved(np.unique(y, return_counts=True)[1]):
            return None
        # The seed is fixed, so that protocols and layers are compared on the same halves.
        return self.cached(
            "halves", len(y), compute=lambda: split_half.draw_halves(y, self.config.resamples, self.config.seed)
        )

    def shuffled(self) -> Labels:
        """A random permutation of the labels, which is the same for all layers."""
        return np.random.default_rng(self.seed).permutation(self.y)
