"""A nearest-class-mean classifier on few labelled images, over many draws of them.

N images, D features, K classes, R draws, Q images that are classified. Everything that the classifier needs are
products of images with each other, so these are computed once for all draws, all numbers of shots, and the halves of
the images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Labels = NDArray[np.integer[Any]]

DRAWS = 100
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
        right: (R, Q) whether an image was classified rightly in a draw; False for labelled images.
        labelled: (R, N) the images that were labelled, and so don't count, in a draw.
        queries: (Q,) positions of the images that are classified.
    """

    right: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    queries: NDArray[np.int64]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(R,) accuracy of each draw on the images that weren't labelled."""
        accuracies: NDArray[np.float64] = self.right.sum(axis=1) / (~self.labelled[:, self.queries]).sum(axis=1)
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

    def predict(self, chosen: NDArray[np.int64]) -> NDArray[np.int32]:
        """(R, Q) the position of the class whose mean is nearest.

        Args:
            chosen: (R, K, shots) the labelled images of each class.
        """
        R, K, shots = chosen.shape
        N, Q = len(self._rows), len(self.queries)
        found = np.empty((R, Q), dtype=np.int32)
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
                found[first : first + at_once] = scores.reshape(-1, K, Q).argmax(axis=1)
                continue
            means = weights @ self._rows
            squares = (means**2).sum(axis=1, keepdims=True)
            for begin in range(0, Q, block):
                asked = self._rows if self._all else self._rows[self.queries[begin : begin + block]]
                scores = means @ asked.T
                scores -= squares / 2
                nearest = scores.reshape(-1, K, len(asked)).argmax(axis=1)
                found[first : first + at_once, begin : begin + block] = nearest
        return found

    def classify(self, shots: int, seed: int, draws: int = DRAWS) -> FewShot | None:
        """Label `shots` images of each class and classify the others, many times.

        Args:
            shots: labelled images per class.
            seed: of the draws, which depend on y alone: every layer is given the same ones.
            draws: R.

        Returns:
            None for fewer than two classes or where a class has no image beyond the labelled ones.
        """
        everywhere = np.ones((len(self.index), 1), dtype=bool)
        chosen = draw_shots(self.index, everywhere, shots, draws, seed)
        if self.K < 2 or chosen is None:
            return None
        labelled = np.zeros((draws, len(self.index)), dtype=bool)
        labelled[np.arange(draws)[:, None], chosen.reshape(draws, -1)] = True
        right = (self.predict(chosen) == self.index[self.queries]) & ~labelled[:, self.queries]
        return FewShot(right, labelled, self.queries)

    def accuracy_within(self, subsets: NDArray[np.bool_], shots: int, draws: int, seed: int) -> Any:
        """(P,) mean accuracy where labelled and classified images are all of one subset.

        Args:
            subsets: (N, P), where all images are classified.
            shots, draws, seed: as for `classify`; `draws` for each subset.

        Returns:
            None where a class has no image of a subset beyond the labelled ones.
        """
        chosen = draw_shots(self.index, subsets, shots, draws, seed)
        if chosen is None:
            return None
        counted = np.repeat(subsets.T, draws, axis=0)
        counted[np.arange(len(chosen))[:, None], chosen.reshape(len(chosen), -1)] = False
        right = (self.predict(chosen) == self.index) & counted
        return (right.sum(axis=1) / counted.sum(axis=1)).reshape(-1, draws).mean(axis=1)


def draw_shots(
    index: Labels, subsets: NDArray[np.bool_], shots: int, draws: int, seed: int
) -> NDArray[np.int64] | None:
    """Draw labelled images of each class from each subset.

    Args:
        index: (N,) class of each image, 0 to K - 1.
        subsets: (N, P).

    Returns:
        (P * draws, K, shots), the draws of a subset one after another; None where a class has too few
        images in a subset to leave one to classify.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for position in range(int(index.max()) + 1):
        members = np.flatnonzero(index == position)
        inside = np.repeat(subsets[members].T, draws, axis=0)
        if inside.sum(axis=1).min() <= shots:
            return None
        # Those with the smallest random keys, of the subset only.
        keys = np.where(inside, rng.random(inside.shape), np.inf)
        chosen.append(members[keys.argpartition(shots, axis=1)[:, :shots]])
    return np.stack(chosen, axis=1)
