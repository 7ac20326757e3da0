"""One layer under one protocol: X, y, and what its scores share, each computed once when it is first asked for."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysep.config import ScoreConfig
from raysep.scoring import split_half, subsample, ties
from raysep.scoring.backend import Backend, Starts
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.few_shot import FewShot, NearestMeans
from raysep.scoring.health import nonfinite_rows
from raysep.scoring.memory import return_freed_memory
from raysep.scoring.metrics import PAPER_K
from raysep.scoring.probe import linear_probe

PAPER_SEED = 42
STARTS = 10
# Of a sample, so many neighbours are kept in all, and those of so many images at least.
NEIGHBORS, LEAST_QUERIES = 10_000_000, 1000
# Halves are clustered, and classified with few labels, of about so many images at most, and so many of each class.
HALVED_IMAGES, HALVED_PER_CLASS = 3000, 10

# Layers of so many bytes are scored within a small multiple of them: what is freed goes back to the machine at once.
LARGE_BYTES = 32 * 2**20

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.int64]
T = TypeVar("T")


class LayerScores:
    """X, y, and what is computed from them.

    N images, D features, K classes present.

    Args:
        X: (N, D) float32.
        y: (N,) labels.
        backend: computes clusters, neighbours and probes.
        config: seeds, resamples, sample.
        protocol: `paper` does exactly what the reference code did: one k-means++ start from random state
            42 on raw features with scikit-learn, and purity over 500 neighbours of all images whatever the class
            sizes.
        shared: results that both protocols of a layer have in common.
        own: X may be changed, so that there is no second one of it.
    """

    def __init__(
        self,
        X: NDArray[np.float32],
        y: Labels,
        backend: Backend,
        config: ScoreConfig,
        protocol: str = "default",
        shared: dict[tuple[Any, ...], Any] | None = None,
        own: bool = False,
    ) -> None:
        self.X, self.y, self.config, self.protocol = X, y, config, protocol
        self.paper = protocol == "paper"
        self.backend = SklearnBackend() if self.paper else backend
        self.seed = PAPER_SEED if self.paper else config.seed
        self.class_sizes = np.unique(y, return_counts=True)[1]
        self.n_classes = len(self.class_sizes)
        self._shared, self._own = {} if shared is None else shared, own
        self._sample = len(y) if self.paper or config.sample is None else min(len(y), config.sample)

    def once(self, *name: Any, compute: Callable[[], T]) -> T:
        """A result by name, computed once for all protocols that would compute the same."""
        place = (*name, self.backend.name, self.seed, self._sample)
        if place not in self._shared:
            self._shared[place] = compute()
            if self.X.nbytes >= LARGE_BYTES:
                return_freed_memory()
        result: T = self._shared[place]
        return result

    @property
    def nonfinite(self) -> int:
        """Images with NaN or infinity."""
        return self.once("nonfinite", compute=lambda: nonfinite_rows(self.X))

    @property
    def scorable(self) -> bool:
        """Whether any score is defined: finite, and two classes or more."""
        return self.n_classes > 1 and self.nonfinite == 0

    @property
    def purity_k(self) -> int:
        """k of `knn_purity`: 500 in the paper, else what the smallest class allows."""
        if self.paper:
            return min(PAPER_K, len(self.y) - 1)
        return int(self.class_sizes.min()) - 1

    @property
    def placed(self) -> Any:
        """X as the backend wants it."""
        return self.once("placed", compute=lambda: self.backend.place(self.X, self._own))

    @property
    def rows(self) -> NDArray[np.float32]:
        """(N, D) X less its mean."""
        return self.once("rows", compute=lambda: self.backend.rows(self.placed))

    @cached_property
    def queries(self) -> Positions | None:
        """(Q,) the images whose neighbours are looked at, and that are classified with few labels; None: all."""
        size = self._sample
        if size < len(self.y):
            # Few large classes have many neighbours each.
            size = min(size, max(LEAST_QUERIES, NEIGHBORS // self._counted_neighbors))
        return subsample.stratified(self.y, size, self.config.seed)

    @property
    def _counted_neighbors(self) -> int:
        return max(self.purity_k, int(self.class_sizes.max()) - 1, 1)

    @property
    def starts(self) -> Starts:
        """k-means from ten starts, as many clusters as classes. The paper's single start is the first."""
        fitted = subsample.uniform(len(self.y), max(self._sample, self.n_classes), self.config.seed)
        return self.once(
            "starts", compute=lambda: self.backend.kmeans(self.placed, self.n_classes, STARTS, self.seed, fitted)
        )

    @property
    def clusters(self) -> Labels:
        """(N,) the clusters that are scored."""
        if self.paper:
            first: Labels = self.starts.labels[0]
            return first
        return self.once("clusters", compute=lambda: self.starts.best)

    @property
    def neighbors(self) -> NDArray[np.integer[Any]]:
        """(Q, k) neighbours, as many as any metric needs."""
        k = self._counted_neighbors
        return self.once("neighbors", k, compute=lambda: self.backend.neighbors(self.placed, k, self.queries))

    @property
    def groups(self) -> Positions:
        """(N,) the first of the images with the same vector as each."""
        return self.once("groups", compute=lambda: ties.groups_of(self.X))

    @property
    def hits(self) -> NDArray[Any]:
        """(Q, k) whether neighbours have the label of their image; shares among equal vectors."""
        k = self._counted_neighbors
        return self.once("hits", k, compute=lambda: ties.hits(self.y, self.neighbors, self.groups, self.queries))

    @property
    def probed(self) -> NDArray[np.bool_] | None:
        """(N,) what the linear probe is right about."""
        return self.once(
            "probe", compute=lambda: linear_probe(self.placed, self.y, self.backend, self.seed, sample=self._sample)
        )

    def few_shot(self, shots: int) -> FewShot | None:
        """What a classifier of few labelled images is right about."""
        return self._nearest_means.classify(shots, self.seed)

    @property
    def _nearest_means(self) -> NearestMeans:
        return self.once("nearest_means", compute=lambda: NearestMeans(self.rows, self.y, self.queries))

    @cached_property
    def in_a(self) -> NDArray[np.bool_] | None:
        """(N, S) the halves; None where no interval is asked for, or the classes are too small for halves."""
        return self._halves_of(self.y)

    @cached_property
    def halved(self) -> Positions | None:
        """The images whose halves are clustered, and classified with few labels; None: all."""
        return subsample.balanced(self.y, HALVED_IMAGES, HALVED_PER_CLASS, self.config.seed + 1)

    @property
    def cluster_halves(self) -> dict[str, split_half.HalfValues] | None:
        """NMI, AMI and ARI on each half."""
        halved = self.halved_images()
        if halved is None:
            return None
        rows, y, in_a = halved
        return self.once(
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
            classifier = self.once("halved_means", compute=lambda: NearestMeans(rows, y))
        return split_half.few_shot_on_halves(classifier, shots, in_a, self.seed)

    @property
    def _of_halved(self) -> tuple[NDArray[np.float32], Labels]:
        if self.halved is None:
            return self.rows, self.y
        return self.once("of_halved", compute=lambda: (self.rows[self.halved], self.y[self.halved]))

    def halved_images(self) -> tuple[NDArray[np.float32], Labels, NDArray[np.bool_]] | None:
        """Rows (n, D), labels (n,) and halves (n, S) of the images that are halved; None without halves."""
        rows, y = self._of_halved
        in_a = self._halves_of(y)
        return None if in_a is None else (rows, y, in_a)

    def _halves_of(self, y: Labels) -> NDArray[np.bool_] | None:
        if not self.config.resamples or not split_half.can_be_halved(np.unique(y, return_counts=True)[1]):
            return None
        # Always of the same seed, so that protocols and layers are compared on the same halves.
        return self.once(
            "halves", len(y), compute=lambda: split_half.draw_halves(y, self.config.resamples, self.config.seed)
        )

    def shuffled(self) -> Labels:
        """The labels, shuffled: the same way for every layer of the same labels."""
        return np.random.default_rng(self.seed).permutation(self.y)
