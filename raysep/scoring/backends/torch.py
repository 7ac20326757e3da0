"""The shared-work backend: all starts, all queries and all fits of a layer in few large products, on CPU or GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from raysep.scoring import torch_kmeans, torch_knn, torch_logistic
from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

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
    def curvature(self) -> torch_logistic.Curvature:
        """Only where iterations start from: images that a fit isn't trained on have no part in what it finds."""
        return torch_logistic.curvature_of(self.rows)


@backend("torch")
class TorchBackend:
    """k-means, neighbours and logistic regressions by `torch_kmeans`, `torch_knn` and `torch_logistic`.

    Args:
        device: a torch device; unset: the GPU of this process, if there is one. Products stay float32 there, not TF32.
    """

    uses_gpu: ClassVar[bool] = True

    def __init__(self, device: str | None = None) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        self.device, self.gpu, self.iterations = device, device != "cpu", 0

    @staticmethod
    def problem() -> str | None:
        """None: torch is always there."""
        return None

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
        found = torch_kmeans.kmeans(of, K, n_init, seed)
        self.iterations += found.iterations
        if sample is None:
            return Starts(found.labels.cpu().numpy(), found.inertia)
        labels = torch_kmeans.assign(rows, found.centres)
        return Starts(labels.cpu().numpy(), torch_kmeans.inertia(rows, labels, found.centres))

    def neighbors(self, placed: Placed, k: int, queries: Positions | None = None) -> Positions:
        """Exact, in blocks."""
        asked = torch.arange(len(placed.rows)) if queries is None else torch.from_numpy(queries)
        found: Positions = torch_knn.nearest(placed.rows, k, asked.to(self.device)).cpu().numpy()
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
        pieces = list(_pieces(folds, y, len(whole) * len(classes) * 4))
        parts: list[list[Labels]] = [[] for _ in folds]
        for some in _in_memory(pieces):
            training = torch.zeros(len(some), len(whole), dtype=torch.bool)
            for row, piece in enumerate(some):
                training[row, torch.from_numpy(place[folds[piece.fold].train])] = True
            problems = torch_logistic.problems_of(rows, training.to(self.device), [piece.strengths for piece in some])
            predicted = torch_logistic.fit_predict(rows, labels, len(classes), problems, placed.curvature).cpu().numpy()
            first = 0
            for piece in some:
                own = predicted[first : first + len(piece.strengths), place[folds[piece.fold].test]]
                parts[piece.fold].append(classes[own])
                first += len(piece.strengths)
        return [np.concatenate(own) for own in parts]


@dataclass(frozen=True)
class _Piece:
    """Some of a fold's fits.

    Attributes:
        fold: its position.
        bytes: of the scores of all of them.
    """

    fold: int
    strengths: Sequence[float]
    bytes: int


def _pieces(folds: Sequence[Fold], y: Labels, bytes_per_fit: int) -> Iterator[_Piece]:
    """The fits of all folds, in pieces that are held at once; one fit at least."""
    most = max(1, FIT_BYTES // bytes_per_fit)
    for position, fold in enumerate(folds):
        # scikit-learn has one vector of weights for two classes, where we have two: the same classifier for half the C.
        half = 0.5 if len(np.unique(y[fold.train])) == 2 else 1.0
        for first in range(0, len(fold.strengths), most):
            own = [half * C for C in fold.strengths[first : first + most]]
            yield _Piece(position, own, bytes_per_fit * len(own))


def _in_memory(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Pieces in groups that are held at once; each group has one at least."""
    groups: list[list[_Piece]] = [[]]
    held = 0
    for piece in pieces:
        if groups[-1] and held + piece.bytes > FIT_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.bytes
    return groups
