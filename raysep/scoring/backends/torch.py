"""The torch backend, on CPU or GPU: batches all k-means starts, neighbour queries and fits of a layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from raysep.process.environment import torch_device
from raysep.scoring import torch_kmeans, torch_knn, torch_logistic
from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

# Memory for the logits of the fits that run together.
FIT_BYTES = 8 * 2**20


class OnDevice:
    """Rows on the device, and their curvature, which all fits share.

    Args:
        rows: (N, D) float32, mean-centred.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @cached_property
    def curvature(self) -> torch_logistic.Curvature:
        """Curvature of all rows. It only preconditions the fits, so that test rows don't leak into the solutions."""
        return torch_logistic.curvature_of(self.rows)


@backend("torch")
class TorchBackend:
    """Runs `torch_kmeans`, `torch_knn` and `torch_logistic`.

    Args:
        device: a torch device; unset: the GPU of this process, else the CPU. GPU products are float32, not TF32.
    """

    uses_gpu: ClassVar[bool] = True

    def __init__(self, device: str | None = None) -> None:
        device = torch_device() if device is None else device
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        self.device, self.gpu, self.iterations = device, device != "cpu", 0

    @staticmethod
    def problem() -> str | None:
        """Return None: torch is a dependency."""
        return None

    def to_device(self, X: Matrix, overwrite: bool = False) -> OnDevice:
        """Copy to the device, mean-centred to avoid cancellation in float32 distances."""
        return OnDevice(torch.from_numpy(centred(X, X if overwrite else None)).to(self.device))

    def rows(self, on_device: OnDevice) -> Matrix:
        """Return the rows on the host; on the CPU without a copy."""
        host: Matrix = on_device.rows.cpu().numpy()
        return host

    def kmeans(self, on_device: OnDevice, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """Run all starts together, with scikit-learn's random draws."""
        rows = on_device.rows
        # Not centred again: the sample's mean is near enough to that of all rows to avoid cancellation.
        fitted = rows if sample is None else rows[torch.from_numpy(sample).to(self.device)]
        result = torch_kmeans.kmeans(fitted, K, n_init, seed)
        self.iterations += result.iterations
        if sample is None:
            return Starts(result.labels.cpu().numpy(), result.inertia)
        labels = torch_kmeans.assign(rows, result.centres)
        return Starts(labels.cpu().numpy(), torch_kmeans.inertia(rows, labels, result.centres))

    def neighbors(self, on_device: OnDevice, k: int, queries: Positions | None = None) -> Positions:
        """Search exactly, in blocks of queries."""
        positions = torch.arange(len(on_device.rows)) if queries is None else torch.from_numpy(queries)
        neighbors: Positions = torch_knn.nearest(on_device.rows, k, positions.to(self.device)).cpu().numpy()
        return neighbors

    def predict(self, on_device: OnDevice, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """Fit all folds and penalties together, as far as memory allows."""
        classes, index = np.unique(y, return_inverse=True)
        used = np.unique(np.concatenate([rows for fold in folds for rows in (fold.train, fold.test)]))
        rows, selected = on_device.rows, np.arange(len(y))
        if len(used) < len(y):
            rows, selected = rows[torch.from_numpy(used).to(self.device)], used
        position = np.empty(len(y), dtype=np.int64)
        position[selected] = np.arange(len(selected))
        labels = torch.from_numpy(index[selected]).to(self.device)
        pieces = list(_pieces(folds, y, len(selected) * len(classes) * 4))
        predictions: list[list[Labels]] = [[] for _ in folds]
        for batch in _in_memory(pieces):
            training = torch.zeros(len(batch), len(selected), dtype=torch.bool)
            for row, piece in enumerate(batch):
                training[row, torch.from_numpy(position[folds[piece.fold].train])] = True
            problems = torch_logistic.problems_of(rows, training.to(self.device), [piece.strengths for piece in batch])
            fitted = torch_logistic.fit_predict(rows, labels, len(classes), problems, on_device.curvature).cpu().numpy()
            first = 0
            for piece in batch:
                encoded = fitted[first : first + len(piece.strengths), position[folds[piece.fold].test]]
                predictions[piece.fold].append(classes[encoded])
                first += len(piece.strengths)
        return [np.concatenate(labels_of_fold) for labels_of_fold in predictions]


@dataclass(frozen=True)
class _Piece:
    """Some of the fits of one fold.

    Attributes:
        fold: index of the fold.
        strengths: C of each fit.
        bytes: memory for the logits of these fits.
    """

    fold: int
    strengths: Sequence[float]
    bytes: int


def _pieces(folds: Sequence[Fold], y: Labels, bytes_per_fit: int) -> Iterator[_Piece]:
    """Split the fits of all folds into pieces of at most `FIT_BYTES`, or one larger fit."""
    at_most = max(1, FIT_BYTES // bytes_per_fit)
    for position, fold in enumerate(folds):
        # For two classes scikit-learn fits one weight vector and we fit two: half the C gives the same classifier.
        half = 0.5 if len(np.unique(y[fold.train])) == 2 else 1.0
        for first in range(0, len(fold.strengths), at_most):
            strengths = [half * C for C in fold.strengths[first : first + at_most]]
            yield _Piece(position, strengths, bytes_per_fit * len(strengths))


def _in_memory(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Group pieces into batches of at most `FIT_BYTES`, or one larger piece."""
    groups: list[list[_Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.bytes > FIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.bytes
    return groups
