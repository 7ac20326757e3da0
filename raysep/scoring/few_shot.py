"""Few-shot nearest-class-mean classification, over all possible draws of labelled images, or many random ones.

N images, D features, K classes, R draws, Q classified images. The classifier needs nothing but dot products between
images, which are computed once for all draws, shot counts and split-halves.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]

# Number of draws, where enumeration is too expensive: within these bounds, about this many (image, class) scores.
DRAWS, MOST_DRAWS, DRAWN_SCORES = 100, 2000, 2_000_000
# Class means tie if their scores differ by at most this multiple of the rounding error.
ROUNDINGS = 4
# Up to this many images, the Gram matrix is stored (144 MB); beyond, draws use the rows.
KEPT_IMAGES = 6000
# Number of scores per chunk of draws.
CHUNK = 2_000_000
# Query images per block.
BLOCK = 2048


@dataclass(frozen=True)
class FewShot:
    """Results of few-shot classification.

    Attributes:
        right: (R, Q) whether an image is classified correctly in a draw; 1/T where the mean of its class is
            one of T equally near class means; 0 for labelled images.
        labelled: (R, N) the labelled images of each draw, which don't count.
        queries: (Q,) positions of the classified images.
        exact: the draws are all possible ones, each once.
    """

    right: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    queries: NDArray[np.int64]
    exact: bool = False

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(R,) accuracy of each draw on its unlabelled images."""
        accuracies: NDArray[np.float64] = self.right.sum(axis=1, dtype=np.float64)
        accuracies /= (~self.labelled[:, self.queries]).sum(axis=1)
        return accuracies


class NearestMeans:
    """Nearest-class-mean classifiers of one layer (Snell et al. 2017, arXiv:1703.05175), Euclidean.

    Args:
        rows: (N, D), mean-centred, to avoid cancellation.
        y: (N,) labels.
        queries: (Q,) positions of the images to classify; unset: all. All N images can be drawn as labelled ones.
    """

    def __init__(self, rows: NDArray[np.floating[Any]], y: Labels, queries: NDArray[np.int64] | None = None) -> None:
        classes, self.index = np.unique(y, return_inverse=True)
        self.K = len(classes)
        self.queries = np.arange(len(y)) if queries is None else queries
        self._rows, self._all = rows, queries is None
        self._products = rows @ rows.T if len(rows) <= KEPT_IMAGES and queries is None else None
        self._squares = np.einsum("nd,nd->n", rows, rows)

    def right(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, Q) as `FewShot.right`: 1 where the mean of a query's class is nearest, 1/T among T ties, else 0.

        Args:
            chosen: (R, K, shots) positions of the labelled images of each class.
        """
        from scipy.sparse import csr_matrix

        R, K, shots = chosen.shape
        N, Q = len(self._rows), len(self.queries)
        shares = np.empty((R, Q), dtype=np.float32)
        # Blocks of queries, to avoid a second copy of most rows.
        block = Q if self._all else min(Q, BLOCK)
        at_once = max(1, CHUNK // (block * K))
        for first in range(0, R, at_once):
            chunk = chosen[first : first + at_once]
            # score = image . mean - |mean|^2 / 2, which decreases with the distance.
            weights = csr_matrix(
                (
                    np.full(chunk.size, 1 / shots, dtype=self._rows.dtype),
                    chunk.ravel(),
                    np.arange(0, chunk.size + 1, shots),
                ),
                shape=(len(chunk) * K, N),
            )
            if self._products is not None:
                scores = weights @ self._products
                squares = np.asarray(weights.multiply(scores).sum(axis=1)).reshape(-1, 1)
                scores -= squares / 2
                shares[first : first + at_once] = self._share_of_class(scores.reshape(-1, K, Q), squares, slice(None))
                continue
            means = weights @ self._rows
            squares = (means**2).sum(axis=1, keepdims=True)
            for begin in range(0, Q, block):
                targets = self._rows if self._all else self._rows[self.queries[begin : begin + block]]
                scores = means @ targets.T
                scores -= squares / 2
                which = slice(begin, begin + block)
                shares[first : first + at_once, which] = self._share_of_class(
                    scores.reshape(-1, K, len(targets)), squares, which
                )
        return shares

    def _share_of_class(
        self, scores: NDArray[np.floating[Any]], squares: NDArray[np.floating[Any]], which: slice
    ) -> NDArray[np.float32]:
        """(R, Q) 1/T where the class mean of a query is one of its T nearest class means, else 0.

        Args:
            scores: (R, K, Q) closeness of each class mean to each query: falls with the distance.
            squares: (R * K, 1) squared norms of the class means.
        """
        positions = self.queries[which]
        size = self._squares[positions] + squares.reshape(len(scores), -1).max(axis=1)[:, None]
        nearest = scores >= (scores.max(axis=1) - ROUNDINGS * np.finfo(scores.dtype).eps * size)[:, None]
        of_class = nearest[:, self.index[positions], np.arange(len(positions))]
        shares: NDArray[np.float32] = (of_class / np.count_nonzero(nearest, axis=1)).astype(np.float32)
        return shares

    def classify(self, shots: int, seed: int) -> FewShot | None:
        """Classify all images but `shots` labelled ones per class, over all possible draws if feasible, else many
        random ones.

        Args:
            shots: labelled images per class.
            seed: seed of the draws, which depend on y alone, so that all layers share them.

        Returns:
            None for fewer than two classes, or where a class has at most `shots` images.
        """
        N, sizes = len(self.index), np.bincount(self.index)
        if self.K < 2 or sizes.min() <= shots:
            return None
        draws = min(MOST_DRAWS, max(DRAWS, DRAWN_SCORES // (len(self.queries) * self.K)))
        exact = math.prod(math.comb(int(size), shots) for size in sizes) <= draws
        chosen = all_shots(self.index, shots) if exact else None
        if chosen is None:
            chosen = draw_shots(self.index, np.ones((N, 1), dtype=bool), shots, draws, seed)
            assert chosen is not None
        labelled = np.zeros((len(chosen), N), dtype=bool)
        labelled[np.arange(len(chosen))[:, None], chosen.reshape(len(chosen), -1)] = True
        right = self.right(chosen) * ~labelled[:, self.queries]
        return FewShot(right, labelled, self.queries, exact)

    def accuracy_within(self, subsets: NDArray[np.bool_], shots: int, draws: int, seed: int) -> Any:
        """Mean accuracy in each subset, with labelled and classified images from that subset alone.

        Args:
            subsets: (N, P) masks. Requires `queries` unset (all images).
            shots, seed: as for `classify`.
            draws: number of draws of labelled images in each subset.

        Returns:
            (P,) accuracies; None if in any subset a class has fewer than `shots` images, or no image is unlabelled.
        """
        chosen = draw_shots(self.index, subsets, shots, draws, seed)
        if chosen is None:
            return None
        counted = np.repeat(subsets.T, draws, axis=0)
        counted[np.arange(len(chosen))[:, None], chosen.reshape(len(chosen), -1)] = False
        if not counted.any(axis=1).all():
            return None
        right = self.right(chosen) * counted
        return (right.sum(axis=1) / counted.sum(axis=1)).reshape(-1, draws).mean(axis=1)


def all_shots(index: Labels, shots: int) -> NDArray[np.int64]:
    """(R, K, shots) all possible draws of `shots` labelled images per class. Arguments as for `draw_shots`."""
    of_class = [
        list(itertools.combinations(np.flatnonzero(index == position).tolist(), shots))
        for position in range(int(index.max()) + 1)
    ]
    return np.array(list(itertools.product(*of_class)))


def draw_shots(
    index: Labels, subsets: NDArray[np.bool_], shots: int, draws: int, seed: int
) -> NDArray[np.int64] | None:
    """Draw labelled images of each class from each subset.

    Args:
        index: (N,) class of each image, 0 to K - 1.
        subsets: (N, P) masks.

    Returns:
        (P * draws, K, shots) positions, grouped by subset; None where a class has fewer than `shots` images in a
        subset.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for position in range(int(index.max()) + 1):
        members = np.flatnonzero(index == position)
        inside = np.repeat(subsets[members].T, draws, axis=0)
        if inside.sum(axis=1).min() < shots:
            return None
        # The members of the subset with the smallest random keys.
        keys = np.where(inside, rng.random(inside.shape), np.inf)
        chosen.append(members[keys.argpartition(shots - 1, axis=1)[:, :shots]])
    return np.stack(chosen, axis=1)
