"""The shared-work engine: all starts, all queries and all fits of a layer in few large products, on CPU or GPU."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raysep.separability.centring import centred
from raysep.separability.engines import lloyd, logistic, search
from raysep.separability.engines.base import Fold, Labels, Matrix, Positions, Starts

# Scores of rows, classes and fits that are held at once.
FIT_BYTES = 8 * 2**20


class Placed:
    """Rows on the device, and what all fits on them share.

    Args:
        rows: (N, D) float32 around their mean.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @cached_property
    def curvature(self) -> logistic.Curvature:
        """Only where iterations start from: images that a fit isn't trained on have no part in what it finds."""
        return logistic.curvature_of(self.rows)


class TorchEngine:
    """k-means, neighbours and logistic regressions by `lloyd.py`, `search.py` and `logistic.py`.

    Args:
        device: a torch device. On a GPU, products stay float32 and not TF32.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        self.device, self.gpu, self.iterations = device, device != "cpu", 0

    def place(self, X: Matrix, own: bool = False) -> Placed:
        """On the device, around their mean: distances keep their digits."""
        return Placed(torch.from_numpy(centred(X, X if own else None)).to(self.device))

    def rows(self, placed: Placed) -> Matrix:
        """On the CPU the same memory."""
        host: Matrix = placed.rows.cpu().numpy()
        return host

    def kmeans(self, placed: Placed, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """The starts of scikit-learn, all at once."""
        rows = placed.rows
        # A sample of the rows has a mean near that of all of them: near enough for distances to keep their digits.
        of = rows if sample is None else rows[torch.from_numpy(sample).to(self.device)]
        found = lloyd.kmeans(of, K, n_init, seed)
        self.iterations += found.iterations
        if sample is None:
            return Starts(found.labels.cpu().numpy(), found.inertia)
        labels = lloyd.assign(rows, found.centres)
        return Starts(labels.cpu().numpy(), lloyd.inertia(rows, labels, found.centres))

    def neighbors(self, placed: Placed, k: int, queries: Positions | None = None) -> Positions:
        """Exact, in blocks."""
        asked = torch.arange(len(placed.rows)) if queries is None else torch.from_numpy(queries)
        found: Positions = search.nearest(placed.rows, k, asked.to(self.device)).cpu().numpy()
        return found

    def predict(self, placed: Placed, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """All fits of all folds at once, as far as they fit into memory."""
        classes, index = np.unique(y, return_inverse=True)
        used = np.unique(np.concatenate([part for fold in folds for part in (fold.train, fold.test)]))
        rows, whole = placed.rows, np.arange(len(y))
        if len(used) < len(y):
            rows, whole = rows[torch.from_numpy(used).to(self.device)], used
        place = np.empty(len(y), dtype=np.int64)
        place[whole] = np.arange(len(whole))
        labels = torch.from_numpy(index[whole]).to(self.device)
        found: list[Labels] = []
        for some in _in_memory(folds, len(whole) * len(classes) * 4):
            training = torch.zeros(len(some), len(whole), dtype=torch.bool)
            for position, fold in enumerate(some):
                training[position, torch.from_numpy(place[fold.train])] = True
            problems = logistic.problems_of(rows, training.to(self.device), [fold.strengths for fold in some])
            predicted = logistic.fit_predict(rows, labels, len(classes), problems, placed.curvature).cpu().numpy()
            first = 0
            for fold in some:
                own = predicted[first : first + len(fold.strengths), place[fold.test]]
                found.append(classes[own])
                first += len(fold.strengths)
        return found


def _in_memory(folds: Sequence[Fold], bytes_per_fit: int) -> list[list[Fold]]:
    """Folds in groups whose fits are held at once; each group has one at least."""
    groups: list[list[Fold]] = [[]]
    held = 0
    for fold in folds:
        needs = bytes_per_fit * len(fold.strengths)
        if groups[-1] and held + needs > FIT_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(fold)
        held += needs
    return groups
