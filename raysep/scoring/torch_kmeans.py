"""Batched k-means from many starts: an iteration is one matrix product for all starts that have not converged.

N rows, D features, K clusters, S starts, T candidates. As in scikit-learn: greedy k-means++ (Arthur and Vassilvitskii
2007) with the same draws from the same random state, and the same convergence criteria, so that both give the same
clusters up to rounding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysep.scoring.torch_knn import squared_norms

ITERATIONS, TOLERANCE = 300, 1e-4
# Memory for the distances of a block of rows to all centres.
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class KMeansResult:
    """Results of all starts.

    Attributes:
        labels: (S, N) int64.
        centres: (S, K, D).
        inertia: (S,).
        iterations: summed over all starts.
    """

    labels: Tensor
    centres: Tensor
    inertia: NDArray[np.float64]
    iterations: int


def kmeans(rows: Tensor, K: int, starts: int, seed: int) -> KMeansResult:
    """Cluster rows from several starts.

    Args:
        rows: (N, D) float32, mean-centred, finite; N >= K.
        K: number of clusters.
        starts: S.
        seed: seed of the numpy random state that all starts share.
    """
    squares = squared_norms(rows)
    centres = _seeds(rows, squares, K, starts, seed)
    # scikit-learn's criterion: total squared movement of all centres.
    tolerance = TOLERANCE * float(squares.mean(dtype=torch.float64)) / rows.shape[1]
    N, D = rows.shape
    labels = torch.full((starts, N), -1, device=rows.device)
    sums = torch.zeros(starts * K, D, dtype=torch.float64, device=rows.device)
    active = torch.arange(starts, device=rows.device)
    iterations = 0
    for _ in range(ITERATIONS):
        iterations += len(active)
        new = assign(rows, centres[active])
        changed = new != labels[active]
        _move(rows, sums, labels, new, changed, active, K)
        labels[active] = new
        settled = ~changed.any(dim=1)
        means = _means(rows, sums, labels, centres, active, K)
        shift = (means - centres[active]).square().sum(dim=(1, 2))
        centres[active] = means
        unsettled = ~settled & (shift > tolerance)
        # These starts converged by tolerance: update their labels for the last centres.
        stopped = active[~settled & ~unsettled]
        if len(stopped):
            labels[stopped] = assign(rows, centres[stopped])
        active = active[unsettled]
        if not len(active):
            break
    if len(active):
        labels[active] = assign(rows, centres[active])
    return KMeansResult(labels, centres, inertia(rows, labels, centres), iterations)


def assign(rows: Tensor, centres: Tensor) -> Tensor:
    """(S, N) index of the nearest of the (S, K, D) centres in each start; the first of several equally near."""
    S, K, D = centres.shape
    flat = centres.reshape(S * K, D)
    # The squared norms of the rows are omitted: they are equal for all centres.
    constant = flat.square().sum(dim=1)
    at_once = max(1, BLOCK_BYTES // (4 * S * K))
    # (centres, rows) is several times as fast as (rows, centres).
    blocks = [
        torch.addmm(constant[:, None], flat, block.T, alpha=-2).reshape(S, K, -1).min(dim=1).indices
        for block in rows.split(at_once)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _seeds(rows: Tensor, squares: Tensor, K: int, starts: int, seed: int) -> Tensor:
    """(S, K, D) initial centres by greedy k-means++: each is the best of T rows drawn by squared distance."""
    N, T = len(rows), 2 + int(math.log(K))
    first, draws = _draws(N, K, T, starts, seed)
    chosen = torch.empty(starts, K, dtype=torch.int64, device=rows.device)
    chosen[:, 0] = first.to(rows.device)
    closest = _distances(rows, squares, chosen[:, 0])
    every_start = torch.arange(starts, device=rows.device)
    for step in range(1, K):
        cumulative = closest.cumsum(dim=1, dtype=torch.float64)
        thresholds = draws[step - 1].to(rows.device) * cumulative[:, -1:]
        candidates = torch.searchsorted(cumulative, thresholds).clamp(max=N - 1)
        distances = _distances(rows, squares, candidates.reshape(-1)).reshape(starts, T, N)
        torch.minimum(distances, closest[:, None], out=distances)
        best = distances.sum(dim=2, dtype=torch.float64).argmin(dim=1)
        chosen[:, step] = candidates[every_start, best]
        closest = distances[every_start, best]
    return rows[chosen]


def _draws(N: int, K: int, T: int, starts: int, seed: int) -> tuple[Tensor, Tensor]:
    """First centres, as rows, (S,) and uniform draws (K - 1, S, T), in scikit-learn's order of random calls."""
    state = np.random.RandomState(seed)
    first, uniform = [], np.empty((K - 1, starts, T))
    even = np.full(N, 1 / N)
    for start in range(starts):
        first.append(state.choice(N, p=even))
        uniform[:, start] = state.uniform(size=(K - 1, T))
    return torch.tensor(first), torch.from_numpy(uniform)


def _distances(rows: Tensor, squares: Tensor, chosen: Tensor) -> Tensor:
    """(C, N) squared distances of all rows to the C chosen rows; exactly 0 from a row to itself."""
    distances = torch.addmm(squares, rows[chosen], rows.T, alpha=-2)
    distances += squares[chosen][:, None]
    distances.clamp_(min=0)
    distances[torch.arange(len(chosen), device=rows.device), chosen] = 0
    return distances


def _move(rows: Tensor, sums: Tensor, labels: Tensor, new: Tensor, changed: Tensor, active: Tensor, K: int) -> None:
    """Update the cluster sums in place: move each reassigned row from its old cluster to its new one."""
    active_index, row = changed.nonzero(as_tuple=True)
    start = active[active_index]
    target, source = start * K + new[active_index, row], labels[start, row]
    had_cluster = source >= 0
    indices = torch.stack([torch.cat([target, (start * K + source)[had_cluster]]), torch.cat([row, row[had_cluster]])])
    sign = torch.ones(indices.shape[1], dtype=rows.dtype, device=rows.device)
    sign[len(target) :] = -1
    with torch.sparse.check_sparse_tensor_invariants(False):
        change = torch.sparse_coo_tensor(indices, sign, (len(sums), len(rows))).coalesce()
        sums += torch.sparse.mm(change, rows)


def _means(rows: Tensor, sums: Tensor, labels: Tensor, centres: Tensor, active: Tensor, K: int) -> Tensor:
    """(A, K, D) cluster means of the active starts; an empty cluster gets the row furthest from that row's centre."""
    totals = sums.reshape(-1, K, sums.shape[1])[active]
    sizes = torch.stack([torch.bincount(labels[start], minlength=K) for start in active.tolist()]).to(totals.dtype)
    for position in (sizes == 0).any(dim=1).nonzero().flatten().tolist():
        start = int(active[position])
        _refill(rows, totals[position], sizes[position], labels[start], centres[start])
    return (totals / sizes.clamp(min=1)[:, :, None]).to(rows.dtype)


def _refill(rows: Tensor, sums: Tensor, sizes: Tensor, labels: Tensor, centres: Tensor) -> None:
    """Move the rows furthest from their centres into the empty clusters, in place."""
    far = (rows - centres[labels]).square().sum(dim=1)
    if not far.any():
        return
    empty = (sizes == 0).nonzero().flatten()
    for cluster, row in zip(empty.tolist(), far.topk(len(empty)).indices.tolist(), strict=True):
        old = int(labels[row])
        sums[old] -= rows[row]
        sizes[old] -= 1
        sums[cluster], sizes[cluster] = rows[row].to(sums.dtype), 1


def inertia(rows: Tensor, labels: Tensor, centres: Tensor) -> NDArray[np.float64]:
    """(S,) sum of squared distances of the rows to their cluster centres.

    Computed from cluster sums, because the differences to the centres would need (N, D) memory per start.
    """
    total = squared_norms(rows).sum(dtype=torch.float64)
    totals = []
    for assigned, means in zip(labels, centres.double(), strict=True):
        sums = torch.zeros_like(means)
        for block, label in zip(rows.split(8192), assigned.split(8192), strict=True):
            sums += torch.zeros_like(means, dtype=rows.dtype).index_add_(0, label, block)
        sizes = torch.bincount(assigned, minlength=len(means))
        totals.append(float(total - 2 * (sums * means).sum() + (sizes * means.square().sum(dim=1)).sum()))
    return np.array(totals).clip(min=0)
