"""A nearest-class-mean classifier on few labelled images: over all draws of them, or many.

N images, D features, K classes, R draws, Q images that are classified. Everything that the classifier needs are
products of images with each other, so these are computed once for all draws, all numbers of shots, and the halves of
the images.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]

# Draws, where there are more than can be enumerated: as many as cost about so many scores of an image for a class.
DRAWS, MOST_DRAWS, DRAWN_SCORES = 100, 2000, 2_000_000
# Class means whose scores differ by no more than so many roundings are equally near.
ROUNDINGS = 4
# Up to so many images the products of all pairs are kept (144 MB); beyond, they are computed draw by draw.
KEPT_IMAGES = 6000
# Scores of so many floats are held at once.
CHUNK = 2_000_000
# Queries whose rows are taken out of all at once.
BLOCK = 2048


@dataclass(frozen=True)
class FewShot:
    """What a few-shot classifier was right about.

    Attributes:
        right: (R, Q) whether an image was classified rightly in a draw: 1, 0, or 1/T where T class means are
            equally near and its own is one of them; 0 for labelled images.
        labelled: (R, N) the images that were labelled, and so don't count, in a draw.
        queries: (Q,) positions of the images that are classified.
        exact: these are all draws that there are, each once.
    """

    right: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    queries: NDArray[np.int64]
    exact: bool = False

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(R,) accuracy of each draw on the images that weren't labelled."""
        accuracies: NDArray[np.float64] = self.right.sum(axis=1, dtype=np.float64)
        accuracies /= (~self.labelled[:, self.queries]).sum(axis=1)
        return accuracies


class NearestMeans:
    """Nearest-class-mean classifiers of one layer (Snell et al. 2017, arXiv:1703.05175), Euclidean.

    Args:
        rows: (N, D) around their mean, so that products don't cancel; distances don't change.
        y: (N,) labels.
        queries: (Q,) positions of the images that are classified; unset: all. Any may be labelled.
    """

    def __init__(self, rows: NDArray[np.floating[Any]], y: Labels, queries: NDArray[np.int64] | None = None) -> None:
        classes, self.index = np.unique(y, return_inverse=True)
        self.K = len(classes)
        self.queries = np.arange(len(y)) if queries is None else queries
        self._rows, self._all = rows, queries is None
        self._products = rows @ rows.T if len(rows) <= KEPT_IMAGES and queries is None else None
        self._squares = np.einsum("nd,nd->n", rows, rows)

    def right(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, Q) 1 where the mean of an image's class is the nearest, 1/T where T are equally near, else 0.

        Args:
            chosen: (R, K, shots) the labelled images of each class.
        """
        from scipy.sparse import csr_matrix

        R, K, shots = chosen.shape
        N, Q = len(self._rows), len(self.queries)
        found = np.empty((R, Q), dtype=np.float32)
        # Blocks of queries, so that what is taken of the rows is never a second copy of most of them.
        block = Q if self._all else min(Q, BLOCK)
        at_once = max(1, CHUNK // (block * K))
        for first in range(0, R, at_once):
            some = chosen[first : first + at_once]
            # Scores are half of the squared distance, less the image's own square, with the other sign.
            weights = csr_matrix(
                (
                    np.full(some.size, 1 / shots, dtype=self._rows.dtype),
                    some.ravel(),
                    np.arange(0, some.size + 1, shots),
                ),
                shape=(len(some) * K, N),
            )
            if self._products is not None:
                scores = weights @ self._products
                squares = np.asarray(weights.multiply(scores).sum(axis=1)).reshape(-1, 1)
                scores -= squares / 2
                found[first : first + at_once] = self._share_of_own(scores.reshape(-1, K, Q), squares, slice(None))
                continue
            means = weights @ self._rows
            squares = (means**2).sum(axis=1, keepdims=True)
            for begin in range(0, Q, block):
                asked = self._rows if self._all else self._rows[self.queries[begin : begin + block]]
                scores = means @ asked.T
                scores -= squares / 2
                some_queries = slice(begin, begin + block)
                found[first : first + at_once, some_queries] = self._share_of_own(
                    scores.reshape(-1, K, len(asked)), squares, some_queries
                )
        return found

    def _share_of_own(
        self, scores: NDArray[np.floating[Any]], squares: NDArray[np.floating[Any]], which: slice
    ) -> NDArray[np.float32]:
        """(R, Q) from the scores (R, K, Q) of some queries for each class mean. Equal vectors have equal shares.

        Args:
            squares: (R * K, 1) of the means.
        """
        asked = self.queries[which]
        size = self._squares[asked] + squares.reshape(len(scores), -1).max(axis=1)[:, None]
        nearest = scores >= (scores.max(axis=1) - ROUNDINGS * np.finfo(scores.dtype).eps * size)[:, None]
        own = nearest[:, self.index[asked], np.arange(len(asked))]
        shares: NDArray[np.float32] = (own / np.count_nonzero(nearest, axis=1)).astype(np.float32)
        return shares

    def classify(self, shots: int, seed: int) -> FewShot | None:
        """Label `shots` images of each class and classify the others: for each way to do that, or many of them.

        Args:
            shots: labelled images per class.
            seed: of the draws, which depend on y alone: every layer is given the same ones.

        Returns:
            None for fewer than two classes or where a class has no image beyond the labelled ones.
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
        """(P,) mean accuracy where labelled and classified images are all of one subset.

        Args:
            subsets: (N, P), where all images are classified.
            shots, draws, seed: as for `classify`; `draws` for each subset.

        Returns:
            None where a class has fewer images in a subset, or there is nothing beyond the labelled ones.
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
    """(R, K, shots) every choice of labelled images, `shots` of each class. Arguments as for `draw_shots`."""
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
        subsets: (N, P).

    Returns:
        (P * draws, K, shots), the draws of a subset one after another; None where a class has fewer images in
        a subset.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for position in range(int(index.max()) + 1):
        members = np.flatnonzero(index == position)
        inside = np.repeat(subsets[members].T, draws, axis=0)
        if inside.sum(axis=1).min() < shots:
            return None
        # Those with the smallest random keys, of the subset only.
        keys = np.where(inside, rng.random(inside.shape), np.inf)
        chosen.append(members[keys.argpartition(shots - 1, axis=1)[:, :shots]])
    return np.stack(chosen, axis=1)
